/* The least that an ioctl costs when another process answers it: a supervisor in C that answers everything with 0.
 * Prints one line of a name and microseconds a call, as tests/exec/programs/calls.c does. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int listener(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xae00, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER,
                   SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
}

static void send_number(int channel, int number)
{
    char data = 0, room[CMSG_SPACE(sizeof number)] = { 0 };
    struct iovec piece = { &data, 1 };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof number);
    memcpy(CMSG_DATA(header), &number, sizeof number);
    sendmsg(channel, &message, 0);
}

static int receive_number(int channel)
{
    int number;
    char data, room[CMSG_SPACE(sizeof number)];
    struct iovec piece = { &data, 1 };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    if (recvmsg(channel, &message, 0) < 1 || !CMSG_FIRSTHDR(&message)) exit(1);
    memcpy(&number, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof number);
    return number;
}

int main(int count, char **words)
{
    int n = count > 1 ? atoi(words[1]) : 1000, channel[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, channel);
    if (!fork()) {
        int number = listener();
        if (number < 0) { perror("seccomp"); _exit(1); }
        send_number(channel[1], number);
        close(number);
        double begun = now();
        for (int i = 0; i < n; i++) ioctl(0, 0xae00, 0);
        printf("floor %.3f\n", (now() - begun) / n * 1e6);
        exit(0);
    }
    close(channel[1]);
    int number = receive_number(channel[0]);
    ioctl(number, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1);
    struct seccomp_notif call;
    for (int i = 0; i < n; i++) {
        memset(&call, 0, sizeof call);
        if (ioctl(number, SECCOMP_IOCTL_NOTIF_RECV, &call)) break;
        struct seccomp_notif_resp answer = { .id = call.id };
        if (ioctl(number, SECCOMP_IOCTL_NOTIF_SEND, &answer)) break;
    }
    return wait(0) < 0;
}
