"""A guest that writes to ports and memory which are events, and halts until an event is its interrupt."""

import fcntl
import mmap
import os
import struct
import threading
import time

from kvm import IO, Vcpu, Vm, address_of

IOEVENTFD, IRQFD, CREATE_IRQCHIP = 0x4040AE79, 0x4020AE76, 0xAE60
DATAMATCH, PIO, DEASSIGN = 1, 2, 4


def event(vm, fd, address, length, flags, data=0):
    fcntl.ioctl(vm.fd, IOEVENTFD, struct.pack("=QQIiI36x", data, address, length, fd, flags))


def count(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def vm_with(code, irqchip=False):
    vm = Vm()
    if irqchip:
        fcntl.ioctl(vm.fd, CREATE_IRQCHIP, 0)
    ram = mmap.mmap(-1, 0x8000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[0x1000 : 0x1000 + len(code)] = code
    vm.region(0, 0, 0x8000, address_of(ram))
    vcpu = Vcpu(vm)
    vcpu.start_at(0x1000, rsp=0x7000)
    return vm, vcpu, ram


def refused(call, *args):
    try:
        call(*args)
    except OSError as error:
        return os.strerror(error.errno)
    return "taken"


# out 10,al (0); out 10,al (1); mov [8000],al; out 11,al
vm, vcpu, _ = vm_with(bytes.fromhex("b000 e610 b001 e610 a20080 e611"))
port, one, memory = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
event(vm, port, 0x10, 1, PIO | DATAMATCH, 0)
event(vm, one, 0x10, 1, PIO | DATAMATCH, 1)
event(vm, memory, 0x8000, 0, 0)
print("twice:", refused(event, vm, one, 0x10, 1, PIO | DATAMATCH, 1))
print("a pipe:", refused(event, vm, os.pipe()[0], 0x12, 1, PIO))
print("flags:", refused(event, vm, one, 0x12, 1, 64), "length:", refused(event, vm, one, 0x12, 3, PIO))
print("none there:", refused(event, vm, one, 0x13, 1, PIO | DEASSIGN))
assert vcpu.run() == IO
print("exit at port", hex(vcpu.io()[2]), "events", count(port), count(one), count(memory))

# cli; the 8259 at 0x20 gets vector 0x20; sti; hlt; out 12,al. The handler of IRQ 4 writes memory.
vm, vcpu, ram = vm_with(
    bytes.fromhex("fa b011 e620 b020 e621 b004 e621 b001 e621 b0ef e621 fb f4 b055 e612"), irqchip=True
)
handler = bytes.fromhex("c606002077 b020 e620 cf")  # mov byte [2000],77; mov al,20; out 20,al; iret
ram[0x3000 : 0x3000 + len(handler)] = handler
ram[0x24 * 4 : 0x24 * 4 + 4] = struct.pack("=HH", 0x3000, 0)
line = os.eventfd(0)
fcntl.ioctl(vm.fd, IRQFD, struct.pack("=IIII16x", line, 4, 0, 0))
print("again:", refused(fcntl.ioctl, vm.fd, IRQFD, struct.pack("=IIII16x", line, 4, 0, 0)))


def later():
    time.sleep(0.3)
    os.eventfd_write(line, 1)


thread = threading.Thread(target=later)
thread.start()
reason = vcpu.run()
thread.join()
print("exit", reason, "port", hex(vcpu.io()[2]), "memory", hex(ram[0x2000]))
