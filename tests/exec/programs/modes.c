/* A greeting from a guest in real, protected, paged or long mode: the same bytes of code in each. */
#include "vm.h"

#define CODE 0x1000
#define TEXT 0x2000
#define ANSWER 0x3000
#define TABLES 0x4000

/* l: lodsb; test al,al; jz done; out dx,al; jmp l; done: mov al,42; stosb; hlt */
static const unsigned char code[] = { 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xb0, 0x2a, 0xaa, 0xf4 };

static void flat(struct kvm_sregs *sregs, int is_long)
{
    struct kvm_segment data = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = sregs->cs = data;
    sregs->cs.selector = 8;
    sregs->cs.type = 11;
    sregs->cs.db = !is_long;
    sregs->cs.l = is_long;
    sregs->cr0 |= 1; /* PE */
}

static void paged(struct kvm_sregs *sregs, unsigned char *ram)
{
    *(unsigned *)(ram + TABLES) = 0x83; /* 4 MiB, present, writable */
    sregs->cr3 = TABLES;
    sregs->cr4 |= 0x10; /* PSE */
    sregs->cr0 |= 1u << 31;
}

static void in_long_mode(struct kvm_sregs *sregs, unsigned char *ram)
{
    *(unsigned long *)(ram + TABLES) = (TABLES + 0x1000) | 3;
    *(unsigned long *)(ram + TABLES + 0x1000) = (TABLES + 0x2000) | 3;
    *(unsigned long *)(ram + TABLES + 0x2000) = 0x83; /* 2 MiB */
    sregs->cr3 = TABLES;
    sregs->cr4 |= 0x20; /* PAE */
    sregs->efer |= 0x500; /* LME, LMA */
    sregs->cr0 |= 1u << 31;
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "real";
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm"), vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *ram = anonymous(0x10000, MAP_PRIVATE);
    memcpy(ram + CODE, code, sizeof code);
    sprintf((char *)ram + TEXT, "Hello from %s mode\n", mode);
    must(region(vm, 0, 0, 0x10000, ram), "slot 0");
    struct vcpu v = vcpu_at(kvm, vm, 0, CODE);
    struct kvm_sregs sregs;
    must(ioctl(v.fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    if (strcmp(mode, "real")) flat(&sregs, !strcmp(mode, "long"));
    if (!strcmp(mode, "paged")) paged(&sregs, ram);
    if (!strcmp(mode, "long")) in_long_mode(&sregs, ram);
    must(ioctl(v.fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = CODE, .rsi = TEXT, .rdi = ANSWER, .rdx = 0xe9, .rflags = 2 };
    must(ioctl(v.fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    for (;;) {
        must(ioctl(v.fd, KVM_RUN, 0), "KVM_RUN");
        if (v.run->exit_reason != KVM_EXIT_IO) break;
        putchar(*((char *)v.run + v.run->io.data_offset));
    }
    must(ioctl(v.fd, KVM_GET_REGS, &regs), "KVM_GET_REGS");
    printf("exit %d at %llx, rax %lld, memory %d\n", v.run->exit_reason, regs.rip, regs.rax, ram[ANSWER]);
    return 0;
}
