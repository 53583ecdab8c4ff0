"""A story of instructions: each round a few of the wide table on fresh registers, in every kind of memory.

Vectors lead to handlers that halt, so that RIP tells which exception was raised and the stack what was pushed.
"""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import Any

from kickstand.scripts.differential.code.encodings import HLT, MODES, PAGE, WINDOW, WINDOW_PAGES
from kickstand.scripts.differential.code.opcodes import BUILDERS
from kickstand.scripts.differential.code.system_opcodes import FIRST_SOFTWARE, SOFTWARE_VECTORS, SYSTEM
from kickstand.scripts.differential.code.wide import Wide, WideBuild
from kickstand.scripts.differential.story import CODE, LOW_SIZE, STACK, Answer, Op, Steps, arenas, due, op

GDT, IDT, HANDLERS = 0x5800, 0x5A00, 0x5E00
VECTORS = FIRST_SOFTWARE + SOFTWARE_VECTORS
FLAGS = (0x1, 0x4, 0x10, 0x40, 0x80, 0x400, 0x800)
MAX_EXITS = 80
RETURN = b"\xe7\xf1\xcf"  # OUT, IRET
EDGE_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x8000, 0x7FFFFFFF, 0x80000000)
REGISTERS = ("rax", "rcx", "rdx", "rbp", "rsi", "rdi")
UPPER = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


class Barrage:
    """One VM, one vCPU, rounds of instructions."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.mode = random.choice(MODES)
        self.encoder = Wide(self.mode, random)
        self.systems = random.choice((0, 0.2, 0.7))  # how many of the instructions are not for applications
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
        yield from arenas(self.mode)
        yield from self.tables()
        yield op("set_memory_region", slot=0, flags=0, gpa=0, size=LOW_SIZE, host={"arena": "A", "offset": 0})
        yield from self.window()
        yield from self.create()
        changes: dict[str, Any] = {}
        if self.mode != "real":
            changes = {"gdt": {"base": GDT, "limit": 0x17}, "idt": {"base": IDT, "limit": VECTORS * 16 - 1}}
        if self.encoder.chance(0.7):
            changes["cr4"] = 0x200 | (0x20 if self.mode == "long64" else 0)
        yield op("set_sregs", vcpu=0, preset=self.mode, changes=changes)

    def create(self) -> Steps:
        """Who runs."""
        yield op("create_vcpu", id=0)
        yield op("set_cpuid_supported", vcpu=0)

    def tables(self) -> Steps:
        code = {"real": b"", "prot32": "ffff0000009bcf00", "long64": "ffff0000009baf00"}[self.mode]
        vectors = b"".join(self.gate(HANDLERS + number * 4) for number in range(VECTORS))
        if self.mode == "real":
            returning = HANDLERS + VECTORS * 4
            vectors = vectors[: FIRST_SOFTWARE * 4] + returning.to_bytes(4, "little") * SOFTWARE_VECTORS
            yield op("write_host", arena="A", offset=0, hex=vectors.hex())
            yield op("write_host", arena="A", offset=returning, hex=RETURN.hex())
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

    def builder(self) -> WideBuild:
        return self.random.choice(SYSTEM if self.encoder.chance(self.systems) else BUILDERS)

    def value(self) -> int:
        choose, bits = self.random, 64 if self.mode == "long64" else 32
        return choose.choice((*EDGE_VALUES, (1 << bits) - 1, *map(choose.getrandbits, (8, bits, bits, bits))))

    def round(self) -> Generator[Op, Answer, bool]:
        choose = self.random
        code = b"".join(self.builder()(self.encoder) for _ in range(choose.choice((1, 1, 2, 3)))) + HLT
        at = CODE + self.place * 0x100
        if self.encoder.chance(0.1):
            at += 0x100 - len(code) // 2 - 1
        self.place = (self.place + 2) % 60
        yield op("write_host", arena="A", offset=at, hex=code.hex())
        names = REGISTERS + (UPPER if self.mode == "long64" else ())
        regs = {name: self.value() for name in names} | {"rbx": WINDOW, "rip": at, "rsp": self.stack()}
        interrupts = 0x200 if self.encoder.chance(self.systems) else 0
        regs["rflags"] = 2 | interrupts | sum(flag for flag in FLAGS if self.encoder.chance(0.3))
        yield op("set_regs", vcpu=0, regs=regs)
        if self.encoder.chance(self.systems / 4):
            yield from self.event()
        for _ in range(MAX_EXITS):
            if self.encoder.chance(0.05):
                yield from self.disturb()
            answer = yield from (self.leave_at_once() if self.encoder.chance(0.05) else self.run())
            if answer.get("errno") == "EINTR":
                continue
            if answer.get("ret") or answer.get("exit_reason") not in ("IO", "MMIO"):
                break
        else:
            return False
        if answer.get("exit_reason") != "HLT":
            return False  # what the shared page holds after a failure depends on the vendor module
        yield op("get_regs", vcpu=0)
        if self.encoder.chance(0.3):
            yield op("hash_host", arena="B")
        if self.encoder.chance(0.2):
            yield op("get_dirty_log", slot=choose.randrange(1, 8), buffer_pages=WINDOW_PAGES)
        return True

    def event(self) -> Steps:
        """Something to deliver: an interrupt waits until the guest allows it, an NMI does not."""
        if self.encoder.chance(0.5):
            yield op("nmi", vcpu=0)
        else:
            yield op("interrupt", vcpu=0, vector=self.random.choice((3, 0x1F, FIRST_SOFTWARE, FIRST_SOFTWARE + 1)))

    def disturb(self) -> Steps:
        """What userspace may do while an access waits: change slots, log, write to memory, leave at once."""
        yield self.random.choice(
            (
                op("set_memory_region", slot=9, flags=0, gpa=0, size=0, host={"abs": 0}),
                op(
                    "set_memory_region",
                    slot=9,
                    flags=self.random.choice((0, 1, 2)),
                    gpa=WINDOW + self.random.randrange(WINDOW_PAGES) * PAGE,
                    size=PAGE,
                    host={"arena": "B", "offset": 0},
                ),
                op("set_memory_region", slot=self.random.randrange(1, 4), flags=0, gpa=0, size=0, host={"abs": 0}),
                op("write_host", arena="B", offset=self.encoder.offset(), hex=self.random.randbytes(8).hex()),
                op("get_dirty_log", slot=self.random.randrange(1, 4), buffer_pages=WINDOW_PAGES),
            )
        )

    def leave_at_once(self) -> Generator[Op, Answer, Answer]:
        yield op("set_run_flag", vcpu=0, flag="immediate_exit", value=1)
        answer = yield from self.run()
        yield op("set_run_flag", vcpu=0, flag="immediate_exit", value=0)
        return answer  # some flags may be undefined now

    def stack(self) -> int:
        """Most of the time where it belongs, else in the window; 16-bit code cannot reach that."""
        if self.mode == "real" or self.encoder.chance(0.7):
            return STACK - 8 * self.random.randrange(8) - self.random.choice((0, 0, 0, 1, 2))
        return WINDOW + self.encoder.offset()

    def run(self) -> Generator[Op, Answer, Answer]:
        args: dict[str, Any] = {"vcpu": 0}
        wanted = due(self.last)
        if wanted:  # without an answer the guest reads what the vendor module left behind after an exception
            args["reply"] = self.random.randbytes(wanted).hex()
        answer = yield op("run", **args)
        self.last = answer
        return answer
