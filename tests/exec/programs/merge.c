/* Two vCPUs read and write m2 while the main thread merges m1 and m2 into one slot and splits it again. */
#include "vm.h"

static int kvm, vm;
static volatile int stop, closed;
static volatile long holes, left[2];
static struct vcpu vcpus[2];
static pthread_t threads[2];
static const char *how;

/* mov al,[e000]; inc cx; mov [e800],cl; cmp cx,0; jne; out 10,al; jmp */
static const unsigned char code[] = { 0xa0, 0x00, 0xe0, 0x41, 0x88, 0x0e, 0x00, 0xe8, 0x81, 0xf9, 0x00, 0x00, 0x75, 0xf2,
                                      0xe6, 0x10, 0xeb, 0xee };

static void *run(void *argument)
{
    long id = (long)argument;
    struct vcpu *v = &vcpus[id];
    while (!stop) {
        if (closed && !strcmp(how, "signal")) { left[id] = 1; while (closed && !stop) usleep(20); left[id] = 0; continue; }
        v->run->immediate_exit = closed && !strcmp(how, "signal");
        if (ioctl(v->fd, KVM_RUN, 0)) {
            if (errno != EINTR) { perror("KVM_RUN"); exit(1); }
            continue;
        }
        if (v->run->exit_reason == KVM_EXIT_MMIO) holes++;
        else if (v->run->exit_reason != KVM_EXIT_IO) { printf("exit %d\n", v->run->exit_reason); exit(1); }
    }
    left[id] = 1;
    return 0;
}

static void handler(int number) { (void)number; for (int i = 0; i < 2; i++) vcpus[i].run->immediate_exit = closed; }

static void begin(void)
{
    if (!strcmp(how, "kick")) must(ioctl(vm, KICK, 0), "KICK");
    if (strcmp(how, "signal")) return;
    closed = 1;
    while (!left[0] || !left[1])
        for (int i = 0; i < 2; i++) {
            vcpus[i].run->immediate_exit = 1;
            pthread_kill(threads[i], SIGUSR1);
            usleep(100);
        }
}

static void end(void)
{
    if (!strcmp(how, "kick")) must(ioctl(vm, RESUME, 0), "RESUME");
    if (!strcmp(how, "signal")) { closed = 0; while (left[0] || left[1]) usleep(20); }
}

int main(int count, char **words)
{
    int rounds = count > 1 ? atoi(words[1]) : 100;
    how = count > 2 ? words[2] : "none";
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, 0);
    kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *ram = anonymous(0x10000, MAP_PRIVATE), *m1 = ram + 0x8000, *m2 = ram + 0xc000;
    memcpy(ram + 0x1000, code, sizeof code);
    must(region(vm, 0, 0, 0x8000, ram), "slot 0");
    must(region(vm, 1, 0x8000, 0x4000, m1), "m1");
    must(region(vm, 2, 0xc000, 0x4000, m2), "m2");
    for (long i = 0; i < 2; i++) vcpus[i] = vcpu_at(kvm, vm, i, 0x1000);
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, run, (void *)i);
    usleep(50000);
    for (int i = 0; i < rounds; i++) {
        begin();
        must(region(vm, 1, 0x8000, 0, m1), "delete m1");
        must(region(vm, 2, 0xc000, 0, m2), "delete m2");
        must(region(vm, 1, 0x8000, 0x8000, m1), "create both");
        end();
        usleep(200);
        begin();
        must(region(vm, 1, 0x8000, 0, m1), "delete both");
        must(region(vm, 1, 0x8000, 0x4000, m1), "create m1");
        must(region(vm, 2, 0xc000, 0x4000, m2), "create m2");
        end();
        usleep(200);
    }
    stop = 1;
    for (int i = 0; i < 2; i++) { vcpus[i].run->immediate_exit = 1; pthread_kill(threads[i], SIGUSR1); pthread_join(threads[i], 0); }
    printf("%ld spurious exits in %d merges and splits\n", holes, rounds);
    return 0;
}
