"""A story of instructions: each round a few of the wide table on fresh registers, in every kind of memory.

Vectors lead to handlers that halt, so that RIP tells which exception was raised and the stack what was pushed.
"""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import Any

from app.scripts.encodings import HLT, MODES, PAGE, WINDOW, WINDOW_PAGES
from app.scripts.opcodes import BUILDERS, Wide
from app.scripts.story import CODE, LOW_SIZE, STACK, TABLES, Answer, Op, Steps, due, op, page_tables

GDT, IDT, HANDLERS = 0x5800, 0x5A00, 0x5E00
VECTORS = 32
FLAGS = (0x1, 0x4, 0x10, 0x40, 0x80, 0x400, 0x800)
MAX_EXITS = 80
EDGE_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x8000, 0x7FFFFFFF, 0x80000000)
REGISTERS = ("rax", "rcx", "rdx", "rbp", "rsi", "rdi")
UPPER = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


class Barrage:
    """One VM, one vCPU, rounds of instructions."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.mode = random.choice(MODES)
        self.encoder = Wide(self.mode, random)
        self.place = 0
        self.last: Answer = {}

    def play(self) -> Steps:
        yield from self.set_up()
        for _ in range(self.random.randrange(6, 14)):
            if not (yield from self.round()):
                break
        yield op("hash_host", arena="A")
        yield op("hash_host", arena="B")

    def set_up(self) -> Steps:
        yield op("arena", name="A", size=LOW_SIZE)
        yield op("arena", name="B", size=WINDOW_PAGES * PAGE)
        yield op("fill_pattern", arena="B")
        if self.mode == "long64":
            yield op("write_host", arena="A", offset=TABLES, hex=page_tables().hex())
        yield from self.tables()
        yield op("set_memory_region", slot=0, flags=0, gpa=0, size=LOW_SIZE, host={"arena": "A", "offset": 0})
        yield from self.window()
        yield op("create_vcpu", id=0)
        yield op("set_cpuid_supported", vcpu=0)
        changes: dict[str, Any] = {}
        if self.mode != "real":
            changes = {"gdt": {"base": GDT, "limit": 0x17}, "idt": {"base": IDT, "limit": VECTORS * 16 - 1}}
        if self.encoder.chance(0.7):
            changes["cr4"] = 0x200 | (0x20 if self.mode == "long64" else 0)
        yield op("set_sregs", vcpu=0, preset=self.mode, changes=changes)

    def tables(self) -> Steps:
        code = {"real": b"", "prot32": "ffff0000009bcf00", "long64": "ffff0000009baf00"}[self.mode]
        vectors = b"".join(self.gate(HANDLERS + number * 4) for number in range(VECTORS))
        if self.mode == "real":
            yield op("write_host", arena="A", offset=0, hex=vectors.hex())
        else:
            yield op("write_host", arena="A", offset=GDT, hex="00" * 8 + str(code) + "ffff00000093cf00")
            yield op("write_host", arena="A", offset=IDT, hex=vectors.hex())
        yield op("write_host", arena="A", offset=HANDLERS, hex="f4909090" * VECTORS)

    def gate(self, handler: int) -> bytes:
        if self.mode == "real":
            return handler.to_bytes(4, "little")
        gate = (handler | 8 << 16).to_bytes(4, "little") + (0x8E00).to_bytes(4, "little")
        return gate if self.mode == "prot32" else gate + bytes(8)

    def window(self) -> Steps:
        """Stretches of RAM, logged or readonly slots, and holes."""
        page, slot = 0, 1
        while page < WINDOW_PAGES:
            pages = min(self.random.choice((1, 1, 2, 3)), WINDOW_PAGES - page)
            kind = self.random.choice((None, None, 0, 0, 1, 2, 3))
            if kind is not None:
                host = {"arena": "B", "offset": self.random.randrange(WINDOW_PAGES - pages + 1) * PAGE}
                yield op(
                    "set_memory_region", slot=slot, flags=kind, gpa=WINDOW + page * PAGE, size=pages * PAGE, host=host
                )
                slot += 1
            page += pages

    def value(self) -> int:
        choose, bits = self.random, 64 if self.mode == "long64" else 32
        return choose.choice((*EDGE_VALUES, (1 << bits) - 1, *map(choose.getrandbits, (8, bits, bits, bits))))

    def round(self) -> Generator[Op, Answer, bool]:
        choose = self.random
        code = b"".join(choose.choice(BUILDERS)(self.encoder) for _ in range(choose.choice((1, 1, 2, 3)))) + HLT
        at = CODE + self.place * 0x100
        if self.encoder.chance(0.1):
            at += 0x100 - len(code) // 2 - 1
        self.place = (self.place + 2) % 60
        yield op("write_host", arena="A", offset=at, hex=code.hex())
        names = REGISTERS + (UPPER if self.mode == "long64" else ())
        regs = {name: self.value() for name in names} | {"rbx": WINDOW, "rip": at, "rsp": self.stack()}
        regs["rflags"] = 2 | sum(flag for flag in FLAGS if self.encoder.chance(0.3))
        yield op("set_regs", vcpu=0, regs=regs)
        for _ in range(MAX_EXITS):
            answer = yield from self.run()
            if answer.get("ret") or answer.get("exit_reason") not in ("IO", "MMIO"):
                break
        else:
            return False
        if answer.get("exit_reason") != "HLT":
            return answer.get("exit_reason") == "INTERNAL_ERROR"
        yield op("get_regs", vcpu=0)
        if self.encoder.chance(0.3):
            yield op("hash_host", arena="B")
        if self.encoder.chance(0.2):
            yield op("get_dirty_log", slot=choose.randrange(1, 8), buffer_pages=WINDOW_PAGES)
        return True

    def stack(self) -> int:
        """Most of the time where it belongs, else in the window; 16-bit code cannot reach that."""
        if self.mode == "real" or self.encoder.chance(0.7):
            return STACK - 8 * self.random.randrange(8) - self.random.choice((0, 0, 0, 1, 2))
        return WINDOW + self.encoder.offset()

    def run(self) -> Generator[Op, Answer, Answer]:
        args: dict[str, Any] = {"vcpu": 0}
        wanted = due(self.last)
        if wanted and self.encoder.chance(0.95):
            args["reply"] = self.random.randbytes(wanted).hex()
        answer = yield op("run", **args)
        self.last = answer
        return answer
