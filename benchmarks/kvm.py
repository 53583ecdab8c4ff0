"""Engine kvm: a port exit and KVM_RUN again through Kickstand's machine against the same loop over fcntl without it."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import struct

from harness import Ratio, at_most, compare, process_ns, report, skipped

from kickstand.core.memslots import Region
from kickstand.core.uapi import KVM_REGS, KVM_SREGS, ioctl_by_name
from kickstand.guests.kvm.device import PATH, unusable
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

SIZE, ENTRY = 0x10000, 0x1000
CODE = b"\xe6\x42\xeb\xfc"  # 1: out 42, al; jmp 1b
TIMES = 1_000
ROW, AGAINST = "engine kvm, PIO exit", "the loop over fcntl"
REGION = struct.Struct("<IIQQQ")
EXIT_REASON = slice(8, 12)
EXIT_IO = 2


class Machine:
    """Kickstand's machine; every exit is one ``run`` with its answer as the API gives it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self.machine = await Registry().create("vm", vcpus=1, engine="kvm", variant="accel_blocker")
        arena = self.machine.memory.allocate(SIZE)
        self.machine.memory.write(arena.base + ENTRY, CODE)
        await self.machine.set_user_memory_region(Region(0, 0, 0, SIZE, arena.base))
        await self.machine.set_sregs(0, PRESETS["real"])
        await self.machine.set_regs(0, {"rip": ENTRY, "rflags": 2})

    def exits(self) -> None:
        self.loop.run_until_complete(self._exits())

    async def _exits(self) -> None:
        for _ in range(TIMES):
            answer = await self.machine.run(0, timeout_ms=None)
            if answer["exit_reason"] != "KVM_EXIT_IO":
                raise RuntimeError(f"the guest ended with {answer}")

    def close(self) -> None:
        self.loop.run_until_complete(self.machine.destroy())
        self.loop.close()


class Bare:
    """The least a VMM in Python does: three descriptors, a mapped page, and ``fcntl.ioctl``."""

    def __init__(self) -> None:
        self.device = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
        self.vm = self._ioctl(self.device, "CREATE_VM")
        self.area = mmap.mmap(-1, SIZE)
        self.area[ENTRY : ENTRY + len(CODE)] = CODE
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self._ioctl(self.vm, "SET_USER_MEMORY_REGION", REGION.pack(0, 0, 0, SIZE, address))
        self.vcpu = self._ioctl(self.vm, "CREATE_VCPU")
        self.page = mmap.mmap(self.vcpu, self._ioctl(self.device, "GET_VCPU_MMAP_SIZE"))
        self._set_registers()
        self.run = ioctl_by_name("RUN").request

    def _ioctl(self, fd: int, name: str, argument: int | bytes | bytearray = 0) -> int:
        return fcntl.ioctl(fd, ioctl_by_name(name).request, argument)

    def _set_registers(self) -> None:
        buffer = bytearray(KVM_SREGS.size)
        self._ioctl(self.vcpu, "GET_SREGS", buffer)
        values = KVM_SREGS.unpack(bytes(buffer))
        for name, value in PRESETS["real"].items():
            values[name] = {**values[name], **value} if isinstance(value, dict) else value
        self._ioctl(self.vcpu, "SET_SREGS", KVM_SREGS.pack(values))
        registers = dict.fromkeys(KVM_REGS.names, 0) | {"rip": ENTRY, "rflags": 2}
        self._ioctl(self.vcpu, "SET_REGS", KVM_REGS.pack(registers))

    def exits(self) -> None:
        for _ in range(TIMES):
            fcntl.ioctl(self.vcpu, self.run, 0)
            if int.from_bytes(self.page[EXIT_REASON], "little") != EXIT_IO:
                raise RuntimeError("the guest ended")


def rows() -> list[Ratio]:
    """One row, or the reason why there is none."""
    if (reason := unusable()) is not None:
        return [skipped(ROW, reason[1])]
    machine, bare = Machine(), Bare()
    try:
        return [compare(ROW, AGAINST, machine.exits, bare.exits, goal=at_most(1.3), clock=process_ns)]
    finally:
        machine.close()


if __name__ == "__main__":
    report(rows())
