/* What single calls cost, in microseconds a call: one line of a name and a figure each. */
#include "vm.h"

#define MEASURE(name, count, call) do { \
    double begun = now(); \
    for (int i = 0; i < (count); i++) { call; } \
    printf("%s %.3f\n", name, (now() - begun) / (count) * 1e6); \
} while (0)

int main(int count, char **words)
{
    int n = count > 1 ? atoi(words[1]) : 1000;
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm"), vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *ram = anonymous(0x100000, MAP_PRIVATE);
    memcpy(ram + 0x1000, "\xe6\x10\xeb\xfc", 4);     /* out 10,al; jmp */
    memcpy(ram + 0x2000, "\xa1\x00\xf0\xeb\xfb", 5); /* mov ax,[f000]: a device; jmp */
    must(region(vm, 0, 0, 0xf000, ram), "region");
    struct vcpu vcpu = vcpu_at(kvm, vm, 0, 0x1000);
    struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
    struct kvm_sregs sregs;
    must(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    must(ioctl(vcpu.fd, KVM_RUN, 0), "KVM_RUN");
    MEASURE("api_version", n, ioctl(kvm, KVM_GET_API_VERSION, 0));
    MEASURE("get_regs", n, ioctl(vcpu.fd, KVM_GET_REGS, &regs));
    MEASURE("set_regs", n, ioctl(vcpu.fd, KVM_SET_REGS, &regs));
    MEASURE("get_sregs", n, ioctl(vcpu.fd, KVM_GET_SREGS, &sregs));
    MEASURE("set_sregs", n, ioctl(vcpu.fd, KVM_SET_SREGS, &sregs));
    MEASURE("out_exit", n, ioctl(vcpu.fd, KVM_RUN, 0));
    regs.rip = 0x2000;
    must(ioctl(vcpu.fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    MEASURE("mmio_read", n, ioctl(vcpu.fd, KVM_RUN, 0));
    MEASURE("slot_pair", n / 4, region(vm, 1, 0x100000, 0x1000, ram + 0xf0000); region(vm, 1, 0x100000, 0, ram));
    MEASURE("other_ioctl", n, ioctl(0, 0x5401, ram));
    MEASURE("other_open", n, close(open("/etc/passwd", O_RDONLY)));
    return 0;
}
