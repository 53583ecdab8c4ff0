/* Two vCPUs on two threads: each counts in memory of its own and tells a port, then halts. */
#include "vm.h"

static int kvm, vm;
static unsigned char *ram;
static long said[2];

/* l: inc al; mov [bx],al; out 10,al; cmp al,5; jne l; hlt */
static const unsigned char code[] = { 0xfe, 0xc0, 0x88, 0x07, 0xe6, 0x10, 0x3c, 0x05, 0x75, 0xf6, 0xf4 };

static void *run(void *argument)
{
    long id = (long)argument;
    struct vcpu v = vcpu_at(kvm, vm, id, 0x1000);
    struct kvm_regs regs = { .rip = 0x1000, .rbx = 0x2000 + id, .rflags = 2 };
    must(ioctl(v.fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    for (;;) {
        must(ioctl(v.fd, KVM_RUN, 0), "KVM_RUN");
        if (v.run->exit_reason != KVM_EXIT_IO) break;
        said[id] = said[id] * 10 + *((char *)v.run + v.run->io.data_offset);
    }
    return 0;
}

int main(void)
{
    pthread_t threads[2];
    kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    ram = anonymous(0x8000, MAP_PRIVATE);
    memcpy(ram + 0x1000, code, sizeof code);
    must(region(vm, 0, 0, 0x8000, ram), "slot 0");
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, run, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
    printf("%ld %ld, memory %d %d\n", said[0], said[1], ram[0x2000], ram[0x2001]);
    return 0;
}
