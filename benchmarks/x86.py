"""x86 guests on the machine that users get against raw Unicorn, and how long a kick of a spinning guest takes.

    python benchmarks/x86.py [--json] [--kicks N]

N is 1,000 by default; the goal is held against 100,000, of which none may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import mmap
import time
from importlib import import_module

from harness import Ratio, at_least, at_most, compare, judged, measured, process_ns, report

from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

SIZE, ENTRY, STACK = 0x10000, 0x1000, 0x7000
ROUNDS = {"fast": 20_000_000, "precise": 600_000}
DATA = 0x4000
PROGRAMS = {  # name: instructions a round, code
    # 1: add eax, ecx; mov [4000], eax; xor edx, [4000]; imul edx, edx, 3; dec ecx; jnz 1b; hlt
    "memory": (6, bytes.fromhex("01c8" + "a300400000" + "331500400000" + "6bd203" + "49" + "75ed" + "f4")),
    # 1: add eax, ecx; imul edx, edx, 3; xor edx, eax; dec ecx; jnz 1b; hlt
    "registers": (5, bytes.fromhex("01c8" + "6bd203" + "31c2" + "49" + "75f6" + "f4")),
}
SPIN = b"\xeb\xfe"
GIVE_UP_S = 5.0
KICKS = 1_000
KICK_P99_MS = 1.0


class Guest:
    """A machine of one vCPU in flat 32-bit mode, as the server makes it."""

    def __init__(self, mode: str, code: bytes = b"") -> None:
        self.loop = asyncio.new_event_loop()
        self.mode = mode
        self.code = code
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self.machine = await Registry().create("vm", vcpus=1, engine="x86", mode=self.mode, variant="sticky")
        arena = self.machine.memory.allocate(SIZE)
        self.machine.memory.write(arena.base + ENTRY, self.code)
        self.machine.memory.write(arena.base + ENTRY + 0x100, SPIN)
        await self.machine.set_user_memory_region(Region(0, 0, 0, SIZE, arena.base))
        await self.machine.set_sregs(0, PRESETS["prot32"])

    def compute(self) -> None:
        self.loop.run_until_complete(self._compute())

    async def _compute(self) -> None:
        await self.machine.set_regs(0, {"rip": ENTRY, "rcx": ROUNDS[self.mode], "rsp": STACK, "rflags": 2})
        answer = await self.machine.run(0, timeout_ms=None)
        if answer["exit_reason"] != "KVM_EXIT_HLT":
            raise RuntimeError(f"the guest ended with {answer}")

    async def kicks(self, times: int) -> tuple[list[float], int]:
        """(milliseconds from a signal to KVM_RUN's answer, one of each; how many never came)."""
        taken, lost = [], 0
        await self.machine.set_regs(0, {"rip": ENTRY + 0x100, "rsp": STACK, "rflags": 2})
        for number in range(times):
            run = self.machine.start_run(0, timeout_ms=None)
            for _ in range(number % 5):  # at any point of the way in
                await asyncio.sleep(0)
            started = time.perf_counter_ns()
            run.signal(Cause.SIGNAL)
            try:
                await asyncio.wait_for(run.result(), GIVE_UP_S)
            except TimeoutError:
                lost += 1
                continue
            taken.append((time.perf_counter_ns() - started) / 1e6)
        return taken, lost

    def close(self) -> None:
        self.loop.run_until_complete(self.machine.destroy())
        self.loop.close()


def raw(mode: str, per_round: int, code: bytes):
    """The same code on Unicorn alone, with a count in mode precise.

    Data lies where no code may: Unicorn is seven times slower at stores to memory that could be executed.
    """
    unicorn = import_module("unicorn")
    consts = import_module("unicorn.x86_const")
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    area = mmap.mmap(-1, SIZE)
    host = ctypes.addressof(ctypes.c_char.from_buffer(area))
    engine.mem_map_ptr(0, DATA, unicorn.UC_PROT_ALL, host)
    engine.mem_map_ptr(DATA, SIZE - DATA, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE, host + DATA)
    area[ENTRY : ENTRY + len(code)] = code
    end = ENTRY + len(code) - 1
    count = ROUNDS[mode] * per_round + 1 if mode == "precise" else 0

    def compute(_kept: object = area) -> None:
        engine.reg_write(consts.UC_X86_REG_ECX, ROUNDS[mode])
        engine.emu_start(ENTRY, end, count=count)
        if engine.reg_read(consts.UC_X86_REG_ECX):
            raise RuntimeError("the code did not come to its end")

    return compute


def speed(mode: str, program: str) -> Ratio:
    """How fast, as a fraction of raw Unicorn's speed."""
    per_round, code = PROGRAMS[program]
    guest = Guest(mode, code)
    against = "Unicorn with count" if mode == "precise" else "Unicorn"
    try:
        return compare(
            f"x86 {mode}, {program}",
            against,
            guest.compute,
            raw(mode, per_round, code),
            goal=at_least(0.9),
            clock=process_ns,
            faster=True,
        )
    finally:
        guest.close()


def kicks(mode: str, times: int) -> list[Ratio]:
    """Kicks of a spinning guest: how long, and that none is lost. Wall time: it needs a quiet core."""
    guest = Guest(mode)
    try:
        taken, lost = guest.loop.run_until_complete(guest.kicks(times))
    finally:
        guest.close()
    taken.sort()
    parts = [sorted(taken[start::9])[-1 - len(taken) // 900] for start in range(9)]  # the p99 of each ninth
    middle = f"p50 {taken[len(taken) // 2]:.2f} ms, worst {taken[-1]:.2f} ms"
    return [
        judged(f"kick of a spinning x86 guest, {mode}, p99", "", parts, at_most(KICK_P99_MS), unit="ms", note=middle),
        measured(f"kicks lost of {times:,}, {mode}", lost, "lost", at_most(0)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kicks", type=int, default=KICKS)
    asked = parser.parse_args()
    speeds = [speed(mode, program) for mode in ROUNDS for program in PROGRAMS]
    report([*speeds, *kicks("fast", asked.kicks), *kicks("precise", asked.kicks)])


if __name__ == "__main__":
    main()
