/* dup, fork, foreign descriptors, unknown ioctls, bad pointers: what a descriptor is does not depend on its number. */
#include "vm.h"
#include <sys/stat.h>

static const char *name(int result) { return result >= 0 ? "ok" : strerrorname_np(errno); }

int main(void)
{
    struct stat status;
    printf("access %s, stat %s", name(access("/dev/kvm", R_OK | W_OK)), name(stat("/dev/kvm", &status)));
    printf(", character device %d of %d:%d\n", S_ISCHR(status.st_mode), (int)(status.st_rdev >> 8), (int)(status.st_rdev & 255));
    chdir("/dev");
    int kvm = must(open("kvm", O_RDWR), "relative");
    printf("cloexec %d\n", fcntl(kvm, F_GETFD));
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    printf("cloexec %d\n", fcntl(vm, F_GETFD));
    int copy = dup(vm), high = fcntl(vm, F_DUPFD, 500);
    printf("dup %s, F_DUPFD %s\n", name(ioctl(copy, KVM_CREATE_VCPU, 0)), name(ioctl(high, KVM_CREATE_VCPU, 1)));
    close(vm);
    printf("the first closed %s\n", name(ioctl(copy, KVM_CREATE_VCPU, 2)));
    printf("taken %s\n", name(ioctl(copy, KVM_CREATE_VCPU, 2)));
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "its number is used again");
    printf("another VM %s\n", name(ioctl(vm, KVM_CREATE_VCPU, 2)));
    int file = must(open("/etc/passwd", O_RDONLY), "/etc/passwd"), pipes[2];
    must(pipe(pipes), "pipe");
    printf("foreign: file %s, pipe %s", name(ioctl(file, KVM_RUN, 0)), name(ioctl(pipes[0], KVM_CREATE_VM, 0)));
    printf(", closed %s\n", name(ioctl(4000, KVM_RUN, 0)));
    printf("unknown: system %s", name(ioctl(kvm, _IO(KVMIO, 0xef), 0)));
    printf(", VM %s", name(ioctl(vm, _IO(KVMIO, 0xef), 0)));
    int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    printf(", vCPU %s\n", name(ioctl(vcpu, _IO(KVMIO, 0xef), 0)));
    printf("an argument: %s", name(ioctl(kvm, KVM_GET_API_VERSION, 1)));
    printf(" %s", name(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 1)));
    printf(" %s\n", name(ioctl(vcpu, KVM_RUN, 1)));
    printf("bad pointers: %s", name(ioctl(vm, KVM_SET_USER_MEMORY_REGION, 8)));
    printf(" %s", name(ioctl(vcpu, KVM_GET_REGS, 8)));
    printf(" %s\n", name(ioctl(vcpu, KVM_SET_SREGS, -1ul)));
    printf("sign-extended %s\n", name(syscall(SYS_ioctl, vcpu, (long)(int)KVM_GET_REGS, &(struct kvm_regs){ 0 })));
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        printf("child: system %s", name(ioctl(kvm, KVM_GET_API_VERSION, 0)));
        printf(", the parent's VM %s", name(ioctl(vm, KVM_CREATE_VCPU, 9)));
        printf(", the parent's vCPU %s", name(ioctl(vcpu, KVM_RUN, 0)));
        int own = ioctl(kvm, KVM_CREATE_VM, 0);
        printf(", a VM of its own %s\n", name(ioctl(own, KVM_CREATE_VCPU, 0)));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    printf("parent: %s\n", name(ioctl(vm, KVM_CREATE_VCPU, 9)));
    for (int i = 0; i < 5; i++) { int again = open("/dev/kvm", O_RDWR); printf("opened again %s\n", name(again)); close(again); usleep(1000); }
    return 0;
}
