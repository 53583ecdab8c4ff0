"""A guest that performs a list of register accesses and keeps what it read: the same code on every engine.

16-bit code with flat data segments ("unreal"), which every KVM can execute. An access becomes a few instructions; reads
go to a table of results, interrupts append their vector to a log and end themselves at the APIC, and an access that
faults with #GP leaves ``FAULT``.
"""

from __future__ import annotations

import struct

from kickstand.core.memslots import Region

PAGE = 4096
SIZE = 64 * PAGE
IVT, STUBS, LOG_END, RESULTS_END, LOG, STACK, CODE, RESULTS = (
    0x0, 0x1000, 0x500, 0x504, 0x4000, 0x7000, 0x8000, 0x10000,
)  # fmt: skip
STUB_BYTES = 48
DONE_PORT = 0x3F0
FAULT = 0xDEADBEEF
APIC, IOAPIC = 0xFEE00000, 0xFEC00000


def _flat(kind):
    return {
        "base": 0, "limit": 0xFFFF_FFFF, "selector": 0, "type": kind, "present": 1, "dpl": 0, "db": 0, "s": 1, "l": 0,
        "g": 1, "avl": 0, "unusable": 0,
    }  # fmt: skip


SREGS = {
    "cs": _flat(11) | {"limit": 0xFFFF, "g": 0}, **{name: _flat(3) for name in ("ds", "es", "fs", "gs", "ss")},
    "cr0": 0x10, "idt": {"base": IVT, "limit": 0x3FF},
}  # fmt: skip


def word(value):
    return struct.pack("<I", value & 0xFFFF_FFFF)


def _port(number):
    return b"\xba" + struct.pack("<H", number)  # mov dx, number


KEEP = b"\x66\x67\xab"  # stosd at edi


def _wrmsr(index, value):
    return b"\x66\xb9" + word(index) + b"\x66\xb8" + word(value) + b"\x66\xba" + word(value >> 32) + b"\x0f\x30"


CODES = {
    "write": lambda address, value: b"\x66\x67\xc7\x05" + word(address) + word(value),  # 32 bits
    "read": lambda address: b"\x66\x67\xa1" + word(address) + KEEP,
    "read8": lambda address: b"\x66\x31\xc0\x67\xa0" + word(address) + KEEP,
    "write8": lambda address, value: b"\x67\xc6\x05" + word(address) + bytes([value]),
    "out": lambda number, value: _port(number) + b"\xb0" + bytes([value]) + b"\xee",
    "in": lambda number: _port(number) + b"\x66\x31\xc0\xec" + KEEP,
    "wrmsr": _wrmsr,
    "rdmsr": lambda index: b"\x66\xb9" + word(index) + b"\x0f\x32" + KEEP + b"\x66\x89\xd0" + KEEP,
    "halt": lambda: b"\xfb\xf4\xfa",  # sti, hlt, cli
    "sleep": lambda: b"\xf4",  # with interrupts off: only what cannot be masked wakes it
    "sti": lambda: b"\xfb",
    "bytes": lambda given: given,
    "open": lambda: b"\xfb\x90\x90\xfa",  # sti, nop, nop, cli
    "until": lambda address, value: b"\xfb\x66\x67\x81\x3d" + word(address) + word(value) + b"\x75\xf2\xfa",
}
"""The instructions of each kind of access; ``until`` spins with interrupts on until memory has the value."""


def code(access):
    """The instructions of one access."""
    name, *given = access
    return CODES[name](*given)


def program(accesses):
    """The whole code, which ends with an OUT to ``DONE_PORT``."""
    begin = b"\x66\xbf" + word(RESULTS)
    end = b"\x66\x67\x89\x3d" + word(RESULTS_END) + _port(DONE_PORT) + b"\xee\xeb\xfe"
    made = begin + b"".join(map(code, accesses)) + end
    assert len(made) < 0x8000
    return made


def _stub(vector, *, eoi):
    """Append the vector to the log and end the interrupt at the APIC."""
    end = b"\x66\x67\xc7\x05" + word(APIC + 0xB0) + word(0) if eoi else b""
    log = b"\x66\x67\xa1" + word(LOG_END) + b"\x67\xc6\x00" + bytes([vector]) + b"\x66\x40\x66\x67\xa3" + word(LOG_END)
    return b"\x66\x50" + log + end + b"\x66\x58\xcf"


def image(accesses, *, eoi=True):
    """Guest memory from address 0."""
    memory = bytearray(SIZE)
    general_protection = b"\x67\x83\x04\x24\x02\x66\xb8" + word(FAULT) + KEEP + b"\xcf"
    for vector in range(256):
        at = STUBS + STUB_BYTES * vector
        stub = general_protection if vector == 13 else _stub(vector, eoi=eoi)
        assert len(stub) <= STUB_BYTES
        memory[at : at + len(stub)] = stub
        memory[IVT + 4 * vector : IVT + 4 * vector + 4] = struct.pack("<HH", at, 0)
    memory[LOG_END : LOG_END + 4] = word(LOG)
    made = program(accesses)
    memory[CODE : CODE + len(made)] = made
    return bytes(memory)


async def load(machine, accesses, *, eoi=True, vcpu_id=0):
    """Give a machine its memory and start vCPU ``vcpu_id`` at the program."""
    arena = machine.memory.allocate(SIZE)
    await machine.set_user_memory_region(Region(0, 0, 0, SIZE, arena.base))
    machine.memory.write(arena.base, image(accesses, eoi=eoi))
    await start_at(machine, vcpu_id, CODE, STACK)
    return arena


async def start_at(machine, vcpu_id, rip, rsp):
    """Start a vCPU in real mode at ``rip``."""
    sregs = await machine.get_sregs(vcpu_id)
    changes = {name: {**sregs[name], **value} if isinstance(value, dict) else value for name, value in SREGS.items()}
    await machine.set_sregs(vcpu_id, changes)
    await machine.set_regs(vcpu_id, {"rip": rip, "rsp": rsp, "rflags": 2})


def results(machine, arena):
    """What was read, and the vectors that arrived."""
    data = machine.memory.read(arena.base, SIZE)
    log_end, end = struct.unpack_from("<II", data, LOG_END)
    reads = struct.unpack_from(f"<{max(0, end - RESULTS) // 4}I", data, RESULTS)
    return reads, list(data[LOG:log_end])
