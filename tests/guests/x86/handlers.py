"""Machines whose interrupts and exceptions have handlers, in ring 0 and in ring 3."""

import struct

from tests.guests.x86.machine import TABLES, Machine

HANDLER = 0x1100
VECTORS = 0x5000
DESCRIPTORS = 0x4000
TASK = 0x6000
IRET = {"real": "cf", "prot32": "cf", "long64": "48cf"}
WORD = {"real": 2, "prot32": 4, "long64": 8}
USER_CODE, USER_DATA = 0x1B, 0x23


def machine_frame(mode):
    """Where the first refused byte of the frame is."""
    return {"real": 0xF7FE, "prot32": 0xF7F4, "long64": 0xF7D8}[mode]


def code_descriptor(mode):
    return struct.pack("<Q", 0x00AF9B000000FFFF if mode == "long64" else 0x00CF9B000000FFFF)


def gate_table(mode, handlers):
    """A vector table with interrupt gates, or the one of real mode."""
    size = {"real": 4, "prot32": 8, "long64": 16}[mode]
    table = bytearray(64 * size)
    for vector, target in handlers.items():
        if mode == "real":
            entry = struct.pack("<HH", target, 0)
        else:
            entry = struct.pack("<HHHH", target & 0xFFFF, 8, 0xEE00, target >> 16).ljust(size, b"\0")
        table[vector * size : (vector + 1) * size] = entry
    return bytes(table)


def machine_with_handlers(mode, code, handlers, **options):
    """A machine whose vectors point to ``handlers`` (vector: code)."""
    machine = Machine(mode, code, **options)
    targets = {}
    for index, (vector, body) in enumerate(handlers.items()):
        targets[vector] = HANDLER + 0x40 * index
        machine.poke(targets[vector], body)
    machine.poke(VECTORS, gate_table(mode, targets))
    flat = 0x00AFFB000000FFFF if mode == "long64" else 0x00CFFB000000FFFF
    machine.poke(
        DESCRIPTORS + 8, code_descriptor(mode) + struct.pack("<QQQ", 0x00CF93000000FFFF, flat, 0x00CFF3000000FFFF)
    )
    limit = {"real": 0xFF, "prot32": 0x1FF, "long64": 0x3FF}[mode]
    machine.cpu.set_special_registers(
        {"idt": {"base": VECTORS, "limit": limit}, "gdt": {"base": DESCRIPTORS, "limit": 0x27}}
    )
    return machine


def frame(machine, count):
    """The words the handler finds on its stack."""
    width = WORD[machine.mode]
    data = machine.peek(machine.reg("rsp"), width * count)
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


def user_machine(mode, code, handlers, **options):
    """A machine in ring 3 whose task state segment names a stack at TASK."""
    machine = machine_with_handlers(mode, code, handlers, **options)
    if mode == "long64":
        for table in (TABLES, TABLES + 0x1000):
            machine.poke(table, bytes([machine.peek(table, 1)[0] | 4]))
        for index in range(512):
            machine.poke(TABLES + 0x2000 + 8 * index, struct.pack("<Q", index << 21 | 0xE7))
        machine.poke(TASK + 4, struct.pack("<Q", TASK))
    else:
        machine.poke(TASK + 4, struct.pack("<II", TASK, 0x10))
    machine.poke(TASK + 0x66, struct.pack("<H", 0x68))  # no I/O permission map
    sregs = machine.cpu.special_registers()
    task = {**sregs["tr"], "base": TASK, "limit": 0x67, "type": 11, "s": 0, "present": 1, "selector": 0x30}
    ring3 = {
        "cs": {**sregs["cs"], "dpl": 3, "selector": USER_CODE},
        "ss": {**sregs["ss"], "dpl": 3, "selector": USER_DATA},
    }
    machine.cpu.set_special_registers({**ring3, "tr": task})
    return machine
