"""The script guest: a list of steps in place of machine code. Deterministic; what the explorer uses.

Memory steps go through the slots as page faults do; ports, holes and HLT leave as in KVM.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kickstand.core.atomics import Shared, atomic, choose, preempt
from kickstand.core.errors import KvmError
from kickstand.core.guest import Cpu
from kickstand.core.run.exits import (
    Asked,
    Exit,
    FaultExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    MmioExit,
    RetryExit,
    WindowExit,
)
from kickstand.core.uapi import KVM_SREGS, PAGE_SHIFT, PAGE_SIZE
from kickstand.guests.host_memory import HostMemory
from kickstand.guests.program import Step, compile_program

SLICE = 64  # steps between two points where others may run
HLT, INTERRUPTED = HltExit(), InterruptedExit()
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags")


class Position(Shared):
    """Where the guest is: the index of its next step."""

    __slots__ = ("at",)
    FIELDS = ("at",)

    def __init__(self) -> None:
        super().__init__()
        self.at = 0

    @atomic
    async def get(self) -> int:
        """The index of the next step."""
        return self.at

    @atomic
    async def set(self, at: int) -> None:
        """The next step is at ``at``."""
        self.at = at


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an access that lies within one page."""

    gpa: int
    offset: int
    size: int


def pieces(gpa: int, size: int) -> Iterator[Piece]:
    """Cut an access at page boundaries, as KVM does."""
    offset = 0
    while offset < size:
        here = min(size - offset, PAGE_SIZE - (gpa + offset) % PAGE_SIZE)
        yield Piece(gpa + offset, offset, here)
        offset += here


def _no_sregs() -> dict[str, object]:
    return cast("dict[str, object]", KVM_SREGS.unpack(bytes(KVM_SREGS.size)))


class ScriptGuest:
    """One vCPU's script. Registers are stored and given back; ``rip`` is the index of the next step."""

    def __init__(self, cpu: Cpu, memory: HostMemory | None, program: Sequence[Step] = (Step("spin"),)) -> None:
        self.memory = memory  # None in the explorer, where no step depends on the contents of memory
        self.position: Position = cpu.share(Position())
        self.program = tuple(program)
        self.source: object = [["spin"]]  # what ``program`` was compiled from
        self.budget = SLICE  # steps until others may run; no local, so that it is no part of the explored state
        self.stored = dict.fromkeys(REGISTERS, 0) | {"rflags": 2}
        self.special: dict[str, object] = {}

    def load_program(self, program: Sequence[Step], source: object = None) -> None:
        """Replace the program and start at its top; the vCPU must not be in KVM_RUN."""
        self.program = tuple(program)
        self.source = source
        self.position.at = 0

    async def enter(self, cpu: Cpu) -> Exit:
        """Run steps until one of them leaves, or an IPI comes."""
        while True:
            if await cpu.mode.interrupted():
                return INTERRUPTED
            at = await self.position.get()
            if self.program[at].targets:
                at = await self.next_step(at)
            step = self.program[at]
            if step.name == "spin":
                await cpu.mode.wait_interrupt()
                return INTERRUPTED
            exit = await self.perform(cpu, step, at)
            if exit is not None:
                return exit
            if cpu.dirty_ring is not None and cpu.dirty_ring.soft_full:
                return INTERRUPTED
            self.budget -= max(1, step.address if step.name == "compute" else 1)
            if self.budget <= 0:
                self.budget = SLICE
                await preempt()

    async def next_step(self, at: int) -> int:
        """Follow choices and jumps, which take no time, to a step that does something."""
        start = at
        while (step := self.program[at]).name in ("choose", "jump"):
            branch = await choose(len(step.targets)) if step.name == "choose" else 0
            at = step.targets[branch] % len(self.program)
        if at != start:
            await self.position.set(at)
        return at

    async def perform(self, cpu: Cpu, step: Step, at: int) -> Exit | None:
        """One step: None if the guest goes on."""
        if step.name in ("read", "write"):
            return await self.access(cpu, step, at)
        if step.name == "fetch":
            return await self.fetch(cpu, step, at)
        if step.name == "hlt" and at == len(self.program) - 1:
            return HLT  # a last HLT is where the program ends; woken, the guest halts again
        await self.position.set(self.after(at))
        return HLT if step.name == "hlt" else step.exit

    def after(self, at: int, *, jump: bool = True) -> int:
        """The step that follows, through jumps if asked: from the top again at the end."""
        at = (at + 1) % len(self.program)
        while jump and (step := self.program[at]).name == "jump":
            at = step.targets[0] % len(self.program)
        return at

    async def access(self, cpu: Cpu, step: Step, at: int) -> Exit | None:
        """A load or store: parts in RAM are done at once, the first part in a hole leaves as MMIO."""
        exit: Exit | None = None
        for piece in pieces(step.address, step.size):
            answer = await self.touch(cpu, step, piece)
            if isinstance(answer, RetryExit | FaultExit):
                return answer
            exit = exit or answer
        await self.position.set(self.after(at, jump=exit is None))  # ``complete`` looks back by one
        return exit

    async def touch(self, cpu: Cpu, step: Step, piece: Piece) -> Exit | None:
        """One page of an access."""
        write = step.name == "write"
        slot = await cpu.memslots.guest_access(piece.gpa, write)
        if write and cpu.dirty_ring is not None and slot is not None and slot.logged and not slot.readonly:
            cpu.dirty_ring.push(slot.id, (piece.gpa >> PAGE_SHIFT) - slot.base_gfn)
        data = (step.value >> 8 * piece.offset & ((1 << 8 * piece.size) - 1)).to_bytes(piece.size, "little")
        if slot is None or (write and slot.readonly and not slot.invalid):
            return MmioExit(piece.gpa, piece.size, write, data if write else b"")
        if slot.invalid:
            return RetryExit(piece.gpa)
        if self.memory is None:
            return None
        try:
            if write:
                self.memory.write(slot.hva(piece.gpa), data)
            else:
                self.memory.read(slot.hva(piece.gpa), piece.size)
        except KvmError:
            return FaultExit(piece.gpa)
        return None

    async def fetch(self, cpu: Cpu, step: Step, at: int) -> Exit | None:
        """Execute from ``gpa``: from a hole that is an internal error, and the guest stays where it is."""
        slot = await cpu.memslots.guest_access(step.address, False)
        if slot is None:
            return InternalErrorExit(gpa=step.address)
        if slot.invalid:
            return RetryExit(step.address)
        await self.position.set(self.after(at))
        return None

    def next_element(self) -> Exit | None:
        """A step stores once."""
        return None

    async def complete(self, cpu: Cpu, pending: Asked, reply: bytes | None) -> Exit | None:
        """Finish the access: its next fragment, and for a load the parts in RAM once more, as KVM re-executes it."""
        if not isinstance(pending, MmioExit):
            return None
        at = await self.position.get()
        step = self.program[(at - 1) % len(self.program)]
        if step.name not in ("read", "write") or not step.address <= pending.phys_addr < step.address + step.size:
            return None  # the program was replaced meanwhile
        for piece in pieces(step.address, step.size):
            if piece.gpa <= pending.phys_addr and (step.name == "write" or piece.gpa == pending.phys_addr):
                continue
            answer = await self.touch(cpu, step, piece)
            if isinstance(answer, MmioExit) and piece.gpa > pending.phys_addr:
                return answer
        await self.position.set(self.after((at - 1) % len(self.program)))  # through jumps, now that it is finished
        return None

    def kick(self) -> None:
        """Nothing to stop: every step looks for an IPI first."""

    def interrupts_allowed(self) -> bool:
        """Always."""
        return True

    @property
    def event_waits(self) -> bool:
        """Never: nothing is delivered."""
        return False

    def interrupt(self, vector: int) -> None:
        """A script has no handlers: the interrupt only ends a HLT."""

    def nmi(self) -> None:
        """As ``interrupt``."""

    @property
    def handles_interrupts(self) -> bool:
        """A script has no handlers."""
        return False

    @property
    def task_priority(self) -> int | None:
        """There is no CR8."""
        return None

    def set_task_priority(self, priority: int) -> None:
        """There is no CR8."""

    def reset(self) -> None:
        """Start at the top again."""
        self.position.at = 0

    def start_at(self, vector: int) -> None:
        """Start at the top, whatever the vector."""
        self.position.at = 0

    def window_exit(self) -> WindowExit | None:
        """A script always takes interrupts."""
        return WindowExit()

    def registers(self) -> dict[str, int]:
        """The stored values, and where the guest is."""
        return self.stored | {"rip": self.position.at}

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """Store values; ``rip`` moves the guest. EINVAL: ``rip`` is no step of the program."""
        rip = registers.get("rip", self.position.at)
        if not 0 <= rip < len(self.program):
            raise KvmError(errno.EINVAL, "KVM_SET_REGS", f"rip {rip} is no step of the program", field="rip")
        self.stored.update(registers)
        self.position.at = rip

    def special_registers(self) -> dict[str, object]:
        """What was stored, zeros else."""
        return {**_no_sregs(), **self.special}

    def set_special_registers(self, changes: Mapping[str, object]) -> None:
        """Store values. EINVAL: one that its register cannot hold."""
        new = {**self.special, **changes}
        try:
            KVM_SREGS.pack({**_no_sregs(), **new})
        except (ValueError, TypeError, KeyError) as error:
            raise KvmError(errno.EINVAL, "KVM_SET_SREGS", str(error)) from error
        self.special = new

    def saved(self) -> dict[str, Any]:
        """The guest as JSON; its program apart, because it seldom changes."""
        return {"at": self.position.at, "stored": self.stored, "special": self.special}

    def load(self, saved: Mapping[str, Any], source: object, *, pending: bool) -> None:
        """Become the guest that was saved. EINVAL: ``source`` is no program, or has no such step."""
        self.load_program(compile_program(source), source)
        self.set_registers({"rip": saved["at"]})
        self.stored = {name: int(saved["stored"][name]) for name in self.stored}
        self.special = dict(saved["special"])

    def close(self) -> None:
        """Nothing to give back."""
