/* Just enough of a VMM for the programs beside it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KICK _IO(KVMIO, 0xd2)
#define RESUME _IO(KVMIO, 0xd3)

static inline int must(int result, const char *what)
{
    if (result < 0) { perror(what); exit(1); }
    return result;
}

struct vcpu { int fd; struct kvm_run *run; };

static inline int region(int vm, int slot, unsigned long gpa, unsigned long size, const void *memory)
{
    struct kvm_userspace_memory_region r = {
        .slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (unsigned long)memory };
    return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static inline struct vcpu vcpu_at(int kvm, int vm, int id, unsigned long rip)
{
    struct vcpu v = { .fd = must(ioctl(vm, KVM_CREATE_VCPU, id), "KVM_CREATE_VCPU") };
    v.run = mmap(0, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "mmap size"), PROT_READ | PROT_WRITE, MAP_SHARED, v.fd, 0);
    struct kvm_sregs sregs;
    must(ioctl(v.fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    must(ioctl(v.fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = rip, .rflags = 2 };
    must(ioctl(v.fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    return v;
}

static inline void *anonymous(size_t size, int flags)
{
    void *memory = mmap(0, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) { perror("mmap"); exit(1); }
    return memory;
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
