# The first process of a guest: says so on the console, and has the machine restarted (QEMU ends with -no-reboot).
        .globl  _start
_start: movl    $2, %eax                        # open("/dev/console", O_RDWR)
        leaq    console(%rip), %rdi
        movl    $2, %esi
        syscall
        movl    %eax, %edi
        movl    $1, %eax                        # write
        leaq    message(%rip), %rsi
        movl    $message_end - message, %edx
        syscall
        movl    $169, %eax                      # reboot(..., LINUX_REBOOT_CMD_RESTART)
        movl    $0xfee1dead, %edi
        movl    $672274793, %esi
        movl    $0x01234567, %edx
        syscall
1:      jmp     1b
console:
        .asciz  "/dev/console"
message:
        .ascii  "This is userspace.\n"
message_end:
