"""Just enough of KVM's interface for programs in Python: the standard library only, nothing of Kickstand."""

import ctypes
import fcntl
import mmap
import os
import struct

GET_API_VERSION, CREATE_VM, CHECK_EXTENSION, GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE03, 0xAE04
CREATE_VCPU, SET_USER_MEMORY_REGION, RUN = 0xAE41, 0x4020AE46, 0xAE80
GET_REGS, SET_REGS, GET_SREGS, SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
KICK, RESUME = 0xAED2, 0xAED3
IO, MMIO, HLT, INTR = 2, 6, 5, 10
REGS = [
    *["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"],
    *(f"r{number}" for number in range(8, 16)),
    "rip",
    "rflags",
]
CODE = bytes.fromhex("00d8 e610 a20020 a00080 a20120 e420 a20220 f4")

kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)


def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Vm:
    def __init__(self):
        self.fd = fcntl.ioctl(kvm, CREATE_VM, 0)

    def region(self, slot, gpa, size, address, flags=0):
        fcntl.ioctl(self.fd, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", slot, flags, gpa, size, address))


class Vcpu:
    def __init__(self, vm, number=0):
        self.fd = fcntl.ioctl(vm.fd, CREATE_VCPU, number)
        self.page = mmap.mmap(self.fd, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))

    def registers(self):
        data = bytearray(144)
        fcntl.ioctl(self.fd, GET_REGS, data)
        return dict(zip(REGS, struct.unpack("=18Q", data), strict=True))

    def start_at(self, rip, **registers):
        sregs = bytearray(312)
        fcntl.ioctl(self.fd, GET_SREGS, sregs)
        struct.pack_into("=QIH", sregs, 0, 0, 0xFFFF, 0)  # cs: base, limit, selector
        fcntl.ioctl(self.fd, SET_SREGS, bytes(sregs))
        values = dict.fromkeys(REGS, 0) | {"rip": rip, "rflags": 2} | registers
        fcntl.ioctl(self.fd, SET_REGS, struct.pack("=18Q", *values.values()))

    def run(self):
        fcntl.ioctl(self.fd, RUN, 0)
        return struct.unpack_from("=I", self.page, 8)[0]

    def io(self):
        direction, size, port, count, offset = struct.unpack_from("=BBHIQ", self.page, 32)
        return direction, size, port, count, offset

    def mmio(self):
        gpa, data, length, is_write = struct.unpack_from("=Q8sIB", self.page, 32)
        return gpa, data[:length], length, is_write


def to_halt(vcpu, out=print):
    """Run ``CODE`` or anything else to HLT, with a device that answers 0x77 and ports that answer 0x5a."""
    while (reason := vcpu.run()) != HLT:
        if reason == IO:
            direction, size, port, count, offset = vcpu.io()
            if direction:
                out(f"io out port {port:x} size {size} count {count} data {vcpu.page[offset]}")
            else:
                out(f"io in port {port:x} size {size} count {count}")
                vcpu.page[offset] = 0x5A
        elif reason == MMIO:
            gpa, _, length, is_write = vcpu.mmio()
            out(f"mmio {'write' if is_write else 'read'} {gpa:x} len {length}")
            vcpu.page[40] = 0x77
        else:
            raise SystemExit(f"exit {reason}")
