/* A vCPU that never exits by itself; every kind of signal has to get its thread out of KVM_RUN. */
#include "vm.h"

static const unsigned char code[] = { 0xeb, 0xfe }; /* jmp $ */
static struct vcpu vcpu;
static volatile int running, done, handled;
static int lost;

static void handler(int number) { (void)number; handled++; }

static void *runs(void *unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set); sigaddset(&set, SIGUSR1); sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    running = syscall(SYS_gettid);
    int result = ioctl(vcpu.fd, KVM_RUN, 0);
    done = result < 0 ? errno : 1000 + vcpu.run->exit_reason;
    return 0;
}

static void once(void (*send)(pthread_t, int), const char *name, int rounds)
{
    int out = 0;
    for (int i = 0; i < rounds; i++) {
        pthread_t thread;
        running = done = 0;
        pthread_create(&thread, 0, runs, 0);
        while (!running) usleep(100);
        usleep(30000); /* it is in KVM_RUN by now */
        send(thread, running);
        for (double end = now() + 5; !done && now() < end; ) usleep(200);
        out += done == EINTR && vcpu.run->exit_reason == KVM_EXIT_INTR;
        if (!done) { lost++; pthread_kill(thread, SIGUSR1); }
        pthread_join(thread, 0);
    }
    printf("%s: %d of %d\n", name, out, rounds);
    lost += out != rounds;
}

static void by_pthread_kill(pthread_t thread, int tid) { (void)tid; pthread_kill(thread, SIGUSR1); }
static void by_tkill(pthread_t thread, int tid) { (void)thread; syscall(SYS_tkill, tid, SIGUSR1); }
static void from_outside(pthread_t thread, int tid)
{
    (void)thread; (void)tid;
    pid_t parent = getpid(), child = fork();
    if (!child) { kill(parent, SIGUSR1); _exit(0); }
    waitpid(child, 0, 0);
}
static void by_timer(pthread_t thread, int tid)
{
    (void)thread; (void)tid;
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec spec = { .it_value = { .tv_nsec = 5000000 } };
    timer_settime(timer, 0, &spec, 0);
}

static void restarting(int flags)
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGALRM, &action, 0);
}

int main(void)
{
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm"), vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *ram = anonymous(0x2000, MAP_PRIVATE);
    memcpy(ram + 0x1000, code, sizeof code);
    must(region(vm, 0, 0, 0x2000, ram), "region");
    vcpu = vcpu_at(kvm, vm, 0, 0x1000);
    sigset_t set;
    sigemptyset(&set); sigaddset(&set, SIGUSR1); sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, 0); /* the vCPU's thread takes them */

    restarting(0);
    once(by_pthread_kill, "pthread_kill", 5);
    restarting(SA_RESTART);
    once(by_pthread_kill, "pthread_kill, SA_RESTART", 5);
    once(by_tkill, "tkill", 5);
    once(from_outside, "kill from another process", 5);
    once(by_timer, "timer", 5);

    /* KVM_SET_SIGNAL_MASK: a signal that the thread blocks gets it out, and stays pending. */
    struct { struct kvm_signal_mask head; unsigned long bits; } mask = { .head = { .len = 8 } };
    memcpy(mask.head.sigset, &(unsigned long){ 0 }, 8);
    must(ioctl(vcpu.fd, KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
    kill(getpid(), SIGUSR1);
    handled = 0;
    int result = ioctl(vcpu.fd, KVM_RUN, 0);
    int error = errno;
    sigset_t pending;
    sigpending(&pending);
    printf("blocked and pending: %d %s, still pending %d, handled %d\n", result, error == EINTR ? "EINTR" : "not EINTR",
           sigismember(&pending, SIGUSR1), handled);
    lost += !(result < 0 && error == EINTR && sigismember(&pending, SIGUSR1) && !handled);
    printf("%s\n", lost ? "FAILED" : "ok");
    return lost;
}
