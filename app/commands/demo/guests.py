"""The VM of the story: two pages next to each other, and guests that read the second one in a loop."""

from __future__ import annotations

from kickstand.client import Client, Json, region

PAGE = 4096
M1, M2 = 0x20_0000, 0x20_1000  # guest-physical; one page each
VCPUS = 2

FLAT = {
    "base": 0,
    "limit": 0xFFFFFFFF,
    "present": 1,
    "dpl": 0,
    "s": 1,
    "l": 0,
    "g": 1,
    "avl": 0,
    "unusable": 0,
    "db": 1,
}
CODE = FLAT | {"type": 11, "selector": 8}
DATA = FLAT | {"type": 3, "selector": 16}
PROTECTED_MODE = {"cs": CODE, **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), DATA), "cr0": 0x11}


def reader_code(counter: int) -> bytes:
    """32-bit code: ``again: mov eax, [M2]; add dword [counter], 1; jmp again``."""
    body = b"\xa1" + M2.to_bytes(4, "little") + b"\x83\x05" + counter.to_bytes(4, "little") + b"\x01"
    return body + b"\xeb" + (-len(body) - 2 & 0xFF).to_bytes(1, "little")


def prepare(client: Client, engine: str) -> str:
    """Give the VM its memory and guests that read m2; returns the host address of m1 and m2."""
    ram = client.allocate(16 * PAGE, "ram")["userspace_addr"]
    merged: str = client.allocate(2 * PAGE, "m1m2")["userspace_addr"]
    client.set_region(0, 0, 16 * PAGE, ram)
    for slot, gpa, offset in ((1, M1, 0), (2, M2, PAGE)):
        client.set_region(slot, gpa, PAGE, hex(int(merged, 16) + offset))
    for vcpu in range(VCPUS):
        if engine == "script":
            client.set_program(vcpu, [["read", M2, 4], ["write", 0x800 + 8 * vcpu, 1, 4]])
            continue
        entry = 0x1000 * (vcpu + 1)
        client.write_host(hex(int(ram, 16) + entry), reader_code(entry + 0x800))
        client.set_sregs(vcpu, PROTECTED_MODE)
        client.set_regs(vcpu, rip=entry, rflags=2)
    return merged


def merge_and_split(merged: str) -> list[list[Json]]:
    """The two transactions of a round: m1 and m2 become one slot, and two again."""
    second = hex(int(merged, 16) + PAGE)
    gone = [region(1, M1, 0, merged), region(2, M2, 0, second)]
    return [
        [*gone, region(1, M1, 2 * PAGE, merged)],
        [gone[0], region(1, M1, PAGE, merged), region(2, M2, PAGE, second)],
    ]
