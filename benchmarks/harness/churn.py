"""A program for ``exec``: makes a VM, runs code that writes to memory and a port, closes it, without end.

The first VM does nothing but leave the guest, so often that the ring of events is full.
"""

import ctypes
import fcntl
import mmap
import os
import struct

CREATE_VM, GET_VCPU_MMAP_SIZE, CREATE_VCPU, RUN = 0xAE01, 0xAE04, 0xAE41, 0xAE80
SET_USER_MEMORY_REGION, SET_REGS, GET_SREGS, SET_SREGS = 0x4020AE46, 0x4090AE82, 0x8138AE83, 0x4138AE84
PAGE, SIZE, EXIT_IO, EXIT_HLT = 0x1000, 1 << 20, 2, 5
CODE = bytes.fromhex("b90080 fe060080 49 75f9 e610 f4")  # cx = 8000; 1: inc byte [8000]; dec cx; jnz 1b; out; hlt
LEAVE = bytes.fromhex("b90080 e610 49 75fb f4")  # cx = 8000; 1: out; dec cx; jnz 1b; hlt


def main() -> None:
    """Until somebody ends it."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    size = fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0)
    one_vm(kvm, size, LEAVE)
    while True:
        one_vm(kvm, size, CODE)


def one_vm(kvm: int, size: int, code: bytes) -> None:
    """From KVM_CREATE_VM to the last close."""
    vm = fcntl.ioctl(kvm, CREATE_VM, 0)
    ram = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[PAGE : PAGE + len(code)] = code
    address = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    fcntl.ioctl(vm, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 1, 0, SIZE, address))
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    page = mmap.mmap(vcpu, size)
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, GET_SREGS, sregs)
    struct.pack_into("=QIH", sregs, 0, 0, 0xFFFF, 0)  # cs: base, limit, selector
    fcntl.ioctl(vcpu, SET_SREGS, bytes(sregs))
    fcntl.ioctl(vcpu, SET_REGS, struct.pack("=18Q", *([0] * 16), PAGE, 2))
    reason = 0
    while reason != EXIT_HLT:
        try:
            fcntl.ioctl(vcpu, RUN, 0)
        except InterruptedError:
            continue
        (reason,) = struct.unpack_from("=I", page, 8)
        if reason not in (EXIT_IO, EXIT_HLT):
            raise SystemExit(f"exit {reason}")
    page.close()
    os.close(vcpu)
    os.close(vm)


if __name__ == "__main__":
    main()
