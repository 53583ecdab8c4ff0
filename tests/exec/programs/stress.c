/* One vCPU writes to page after page, so that hardly an access is in its TLB, while slots come and go beside it.
 * Goes on until its input ends, then says how often it came round. */
#include "vm.h"
#include <poll.h>

#define SIZE (16UL << 20)
#define BESIDE (64UL << 20)

static int vm;
static volatile int stop;
static long rounds;

/* protected mode, flat: mov ebx,0x10000; l: inc dword [ebx]; add ebx,4096; cmp ebx,SIZE; jb l; out 10,al; jmp */
static const unsigned char code[] = { 0xbb, 0, 0, 1, 0, 0xff, 0x03, 0x81, 0xc3, 0, 0x10, 0, 0, 0x81, 0xfb, 0, 0, 0, 1,
                                      0x72, 0xf0, 0xe6, 0x10, 0xeb, 0xe7 };

static void flat(struct kvm_segment *segment, int selector, int type)
{
    *segment = (struct kvm_segment){ .limit = 0xffffffff, .selector = selector, .type = type,
                                     .present = 1, .db = 1, .s = 1, .g = 1 };
}

static void *run(void *argument)
{
    struct vcpu *v = argument;
    while (!stop) {
        if (ioctl(v->fd, KVM_RUN, 0)) {
            if (errno != EINTR) { perror("KVM_RUN"); exit(1); }
            continue;
        }
        if (v->run->exit_reason != KVM_EXIT_IO) { printf("exit %d\n", v->run->exit_reason); exit(1); }
        rounds++;
    }
    return 0;
}

int main(void)
{
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *ram = anonymous(SIZE, MAP_PRIVATE);
    memcpy(ram + 0x1000, code, sizeof code);
    must(region(vm, 0, 0, SIZE, ram), "slot 0");
    struct vcpu v = vcpu_at(kvm, vm, 0, 0x1000);
    struct kvm_sregs sregs;
    must(ioctl(v.fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    flat(&sregs.cs, 8, 11);
    struct kvm_segment *data[] = { &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss };
    for (int i = 0; i < 5; i++) flat(data[i], 16, 3);
    sregs.cr0 |= 1;
    must(ioctl(v.fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    pthread_t thread;
    pthread_create(&thread, 0, run, &v);
    struct pollfd input = { .fd = 0, .events = POLLIN };
    long changes = 0;
    while (poll(&input, 1, 0) == 0) {
        void *memory = anonymous(4096, MAP_PRIVATE);
        must(region(vm, 7, BESIDE, 4096, memory), "create");
        must(region(vm, 7, BESIDE, 0, memory), "delete");
        munmap(memory, 4096);
        changes++;
    }
    stop = 1;
    pthread_join(thread, 0);
    printf("%ld rounds, %ld changes\n", rounds, changes);
    return 0;
}
