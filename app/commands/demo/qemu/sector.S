# A boot sector: one CPU executes code in low RAM without end, the other has QEMU delete and create the slot of low RAM.
#
# QEMU's machine "pc" maps 0xc0000-0xc7fff as its host bridge's register PAM1 says. Each write that changes the register
# is a memory transaction: DELETE of the slots below 1 MiB, the one under the other CPU's feet too, and CREATE.
# A point goes to the debug console (0xe9) after each. How it ended goes to isa-debug-exit (0xf4).

        .set    COUNTER, 0x9000                 # what the second CPU counts
        .set    SECOND, 0x8000                  # where its code goes: SIPI vector 8
        .set    APIC_SPURIOUS, 0xfee000f0
        .set    APIC_COMMAND, 0xfee00300
        .set    PAM1, 0x8000005a & ~3           # of bus 0, device 0, function 0
        .set    SURVIVED, 0x10
        .set    NO_SECOND_CPU, 0x11
        .set    SECOND_CPU_STANDS, 0x12
        .set    PATIENCE, 20000000              # turns of a loop

        .code16
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    $second, %si
        movw    $SECOND, %di
        movw    $(second_end - second), %cx
        cld
        rep movsb
        movl    $0, COUNTER
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7c00, %esp

        # INIT and SIPI to all but this CPU
        movl    $0x1ff, APIC_SPURIOUS
        movl    $0x000c4500, APIC_COMMAND
        movl    $100000, %ecx
1:      decl    %ecx
        jnz     1b
        movl    $0x000c4600 + (SECOND >> 12), APIC_COMMAND
        movb    $NO_SECOND_CPU, %bl
        call    await

        # transactions
        movl    $PAM1, %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movl    transactions, %esi
        movw    $0xcfe, %dx                     # the third byte of the register that was chosen
        inb     %dx, %al
        movb    %al, %ah
1:      movw    $0xcfe, %dx
        xorb    $0x33, %ah
        movb    %ah, %al
        outb    %al, %dx
        movb    $'.', %al
        outb    %al, $0xe9
        decl    %esi
        jnz     1b

        movb    $SECOND_CPU_STANDS, %bl
        call    await
        movb    $SURVIVED, %bl
end:    movb    %bl, %al
        outb    %al, $0xf4
1:      hlt
        jmp     1b

        # Return as soon as the second CPU has counted on; if it does not, that is the end.
await:  movl    COUNTER, %eax
        movl    $PATIENCE, %ecx
1:      cmpl    COUNTER, %eax
        jne     2f
        decl    %ecx
        jnz     1b
        popl    %eax
        jmp     end
2:      ret

        .code16
second: cli
        xorw    %ax, %ax
        movw    %ax, %ds
1:      incl    COUNTER
        jmp     1b
second_end:

        .balign 8
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
        .word   23
        .long   gdt

        .org    506
transactions:
        .long   400                             # whoever writes the sector to a disk may set another number
        .word   0xaa55
