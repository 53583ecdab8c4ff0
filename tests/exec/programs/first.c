/* One vCPU in real mode: adds two numbers, writes the sum to a port and to memory, reads a device, halts. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static const unsigned char code[] = {
    0x00, 0xd8,             /* add al, bl */
    0xe6, 0x10,             /* out 0x10, al */
    0xa2, 0x00, 0x20,       /* mov [0x2000], al */
    0xa0, 0x00, 0x80,       /* mov al, [0x8000]: a device */
    0xa2, 0x01, 0x20,       /* mov [0x2001], al */
    0xe4, 0x20,             /* in al, 0x20 */
    0xa2, 0x02, 0x20,       /* mov [0x2002], al */
    0xf4,                   /* hlt */
};

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) { perror("/dev/kvm"); return 1; }
    printf("version %d\n", ioctl(kvm, KVM_GET_API_VERSION, 0));
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) { perror("KVM_CREATE_VM"); return 1; }
    unsigned char *ram = mmap(0, 0x8000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(ram + 0x1000, code, sizeof code);
    struct kvm_userspace_memory_region region = { .memory_size = 0x8000, .userspace_addr = (unsigned long)ram };
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) { perror("KVM_SET_USER_MEMORY_REGION"); return 1; }
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    size_t size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = 0; sregs.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = { .rip = 0x1000, .rax = 2, .rbx = 3, .rflags = 2 };
    if (ioctl(vcpu, KVM_SET_REGS, &regs)) { perror("KVM_SET_REGS"); return 1; }
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0)) { perror("KVM_RUN"); return 1; }
        unsigned char *data = (unsigned char *)run + run->io.data_offset;
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            printf("io %s port %x size %d count %d", run->io.direction ? "out" : "in", run->io.port, run->io.size,
                   run->io.count);
            if (run->io.direction) printf(" data %d", *data); else *data = 0x5a;
            printf("\n");
            break;
        case KVM_EXIT_MMIO:
            printf("mmio %s %llx len %d\n", run->mmio.is_write ? "write" : "read", run->mmio.phys_addr, run->mmio.len);
            run->mmio.data[0] = 0x77;
            break;
        case KVM_EXIT_HLT:
            ioctl(vcpu, KVM_GET_REGS, &regs);
            printf("hlt rip %llx, memory %x %x %x, if %d\n", regs.rip, ram[0x2000], ram[0x2001], ram[0x2002],
                   run->if_flag);
            return 0;
        default:
            printf("exit %d\n", run->exit_reason);
            return 1;
        }
    }
}
