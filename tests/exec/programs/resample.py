"""A level triggered line that an eventfd raises: it is high until the guest ends the interrupt, which an eventfd tells.

Here behind the 8259 pair; the second interrupt comes from a second event.
"""

import fcntl
import mmap
import os
import struct

from kvm import IO, Vcpu, Vm, address_of

CREATE_IRQCHIP, IRQFD, ENABLE_CAP, SPLIT_IRQCHIP = 0xAE60, 0x4020AE76, 0x4068AEA3, 121
DEASSIGN, RESAMPLE = 1, 2
LINE = 5


def assign(vm, event, resample, flags=RESAMPLE):
    fcntl.ioctl(vm.fd, IRQFD, struct.pack("=iIIi16x", event, LINE, flags, resample))


def refused(call, *args):
    try:
        call(*args)
    except OSError as error:
        return os.strerror(error.errno)
    return "taken"


def told(eventfd):
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def vm_with(code, handler, vector):
    vm = Vm()
    fcntl.ioctl(vm.fd, CREATE_IRQCHIP, 0)
    ram = mmap.mmap(-1, 0x8000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[0x1000 : 0x1000 + len(code)] = code
    ram[0x3000 : 0x3000 + len(handler)] = handler
    ram[vector * 4 : vector * 4 + 4] = struct.pack("=HH", 0x3000, 0)
    vm.region(0, 0, 0x8000, address_of(ram))
    vcpu = Vcpu(vm)
    vcpu.start_at(0x1000, rsp=0x7000)
    return vm, vcpu, ram


def look(vm, vcpu, ram):
    event, resample = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    assign(vm, event, resample)
    print("again:", refused(assign, vm, event, resample))
    print("no eventfd:", refused(assign, vm, os.eventfd(0), os.pipe()[0]))
    assert vcpu.run() == IO  # ready
    for _ in range(2):
        os.eventfd_write(event, 1)
        print("before:", told(resample), end=" ")
        assert vcpu.run() == IO
        print("port", hex(vcpu.io()[2]), "interrupts", ram[0x2000], "told", told(resample))
    assign(vm, event, -1, DEASSIGN)


# The master 8259 at 0x20, level 5 by its ELCR, all masked but line 5; ready; then sti, hlt, cli, out 12, again.
pic = "fa b011 e620 b020 e621 b004 e621 b001 e621 b0df e621 bad004 b020 ee e613 fb f4 fa e612 ebf9"
handler = "fe060020 b020 e620 cf"  # inc byte [2000]; EOI; iret
look(*vm_with(bytes.fromhex(pic), bytes.fromhex(handler), 0x25))

split = Vm()
fcntl.ioctl(split.fd, ENABLE_CAP, struct.pack("=II4Q64x", SPLIT_IRQCHIP, 0, 24, 0, 0, 0))
print("split:", refused(assign, split, os.eventfd(0), os.eventfd(0)))
