"""The script guest: a list of steps in place of machine code. Deterministic; what the explorer uses.

A program is compiled to a flat list in which ``choose`` is a jump, so that where the guest is, is one
number. Memory steps go through the slots as page faults do; ports, holes and HLT leave as in KVM.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from app.core.atomics import Shared, atomic, choose, preempt
from app.core.errors import KvmError
from app.core.guest import (
    Exit,
    FaultExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MmioExit,
    RetryExit,
    WindowExit,
)
from app.core.uapi import KVM_SREGS, PAGE_SIZE

if TYPE_CHECKING:
    from app.core.vcpu import Vcpu
    from app.guests.host_memory import HostMemory

SLICE = 64  # steps between two points where others may run
MAX_DEPTH = 16
HLT, INTERRUPTED = HltExit(), InterruptedExit()
LAST_PORT = 0xFFFF
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags")
ARGUMENTS = {
    "read": ("gpa", "size"),
    "write": ("gpa", "value", "size"),
    "compute": ("n",),
    "in": ("port", "size"),
    "out": ("port", "value", "size"),
    "fetch": ("gpa",),
    "hlt": (),
    "spin": (),
}
OPTIONAL_SIZE = {"read": 8, "write": 8, "in": 1, "out": 1}
SIZES = {"read": (1, 2, 4, 8), "write": (1, 2, 4, 8), "in": (1, 2, 4), "out": (1, 2, 4)}


@dataclass(frozen=True, slots=True)
class Step:
    """One compiled step; ``targets`` are where a ``choose`` or ``jump`` goes."""

    name: str
    address: int = 0  # gpa, port, or the amount of ``compute``
    size: int = 0
    value: int = 0
    targets: tuple[int, ...] = ()
    exit: IoExit | None = None  # of a step that always leaves in the same way


def compile_program(program: object) -> tuple[Step, ...]:
    """Check a program (design: the bare list of steps) and flatten it.

    Raises ``KvmError`` EINVAL that names the step by its path (``[2][1][0]``) and the rule.
    """
    steps: list[Step] = []
    _compile(program, "", 0, steps)
    return tuple(steps)


def _bad(path: str, rule: str) -> KvmError:
    return KvmError(errno.EINVAL, "program", f"step {path or 'list'}: {rule}", field=f"program{path}")


def _compile(program: object, path: str, depth: int, steps: list[Step]) -> None:
    if not isinstance(program, list | tuple) or not program:
        raise _bad(path, "a program is a list of at least one step")
    if depth > MAX_DEPTH:
        raise _bad(path, f"choices nest deeper than {MAX_DEPTH}")
    for index, step in enumerate(program):
        where = f"{path}[{index}]"
        if not isinstance(step, list | tuple) or not step or not isinstance(step[0], str):
            raise _bad(where, "a step is a list that starts with its name")
        if step[0] == "choose":
            _compile_choose(step[1:], where, depth, steps)
        else:
            steps.append(_compile_step(step[0], step[1:], where))


def _compile_choose(branches: Sequence[object], path: str, depth: int, steps: list[Step]) -> None:
    if not branches:
        raise _bad(path, "choose needs at least one program")
    at = len(steps)
    steps.append(Step("choose"))
    targets: list[int] = []
    jumps: list[int] = []
    for index, branch in enumerate(branches):
        targets.append(len(steps))
        _compile(branch, f"{path}[{index + 1}]", depth + 1, steps)
        jumps.append(len(steps))
        steps.append(Step("jump"))
    for jump in jumps:
        steps[jump] = Step("jump", targets=(len(steps),))
    steps[at] = Step("choose", targets=tuple(targets))


def _compile_step(name: str, given: Sequence[object], path: str) -> Step:
    names = ARGUMENTS.get(name)
    if names is None:
        raise _bad(path, f"{name!r} is none of {', '.join([*ARGUMENTS, 'choose'])}")
    needed = len(names) - (name in OPTIONAL_SIZE)
    if not needed <= len(given) <= len(names):
        raise _bad(
            path, f"{name} takes {', '.join(names) or 'nothing'}{' (size may be left out)' * (name in OPTIONAL_SIZE)}"
        )
    values = {key: _number(value, key, path) for key, value in zip(names, given, strict=False)}
    size = values.get("size", OPTIONAL_SIZE.get(name, 0))
    if name in SIZES and size not in SIZES[name]:
        raise _bad(path, f"size {size} is none of {SIZES[name]}")
    address = values.get("gpa", values.get("port", values.get("n", 0)))
    if "port" in values and address > LAST_PORT:
        raise _bad(path, f"port {address:#x} is above {LAST_PORT:#x}")
    value = values.get("value", 0)
    if size and value >= 1 << 8 * size:
        raise _bad(path, f"value {value:#x} does not fit in {size} bytes")
    return Step(name, address, size, value, exit=_exit(name, address, size, value))


def _exit(name: str, port: int, size: int, value: int) -> IoExit | None:
    if name == "in":
        return IoExit("in", size, port)
    return IoExit("out", size, port, data=value.to_bytes(size, "little")) if name == "out" else None


def _number(value: object, key: str, path: str) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise _bad(path, f"{key} {value!r} is no number") from None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise _bad(path, f"{key} must be an integer from 0 to 2**64-1")
    return value


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

    def __init__(self, vcpu: Vcpu, memory: HostMemory | None, program: Sequence[Step] = (Step("spin"),)) -> None:
        self.memory = memory  # None in the explorer, where no step depends on the contents of memory
        self.position: Position = vcpu.vm.share(Position())
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

    async def enter(self, vcpu: Vcpu) -> Exit:
        """Run steps until one of them leaves, or an IPI comes."""
        while True:
            if await vcpu.mode.interrupted():
                return INTERRUPTED
            at = await self.position.get()
            if self.program[at].targets:
                at = await self.next_step(at)
            step = self.program[at]
            if step.name == "spin":
                await vcpu.mode.wait_interrupt()
                return INTERRUPTED
            exit = await self.perform(vcpu, step, at)
            if exit is not None:
                return exit
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

    async def perform(self, vcpu: Vcpu, step: Step, at: int) -> Exit | None:
        """One step: None if the guest goes on."""
        if step.name in ("read", "write"):
            return await self.access(vcpu, step, at)
        if step.name == "fetch":
            return await self.fetch(vcpu, step, at)
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

    async def access(self, vcpu: Vcpu, step: Step, at: int) -> Exit | None:
        """A load or store: parts in RAM are done at once, the first part in a hole leaves as MMIO."""
        exit: Exit | None = None
        for piece in pieces(step.address, step.size):
            answer = await self.touch(vcpu, step, piece)
            if isinstance(answer, RetryExit | FaultExit):
                return answer
            exit = exit or answer
        await self.position.set(self.after(at, jump=exit is None))  # ``complete`` looks back by one
        return exit

    async def touch(self, vcpu: Vcpu, step: Step, piece: Piece) -> Exit | None:
        """One page of an access."""
        write = step.name == "write"
        slot = await vcpu.vm.memslots.guest_access(piece.gpa, write)
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

    async def fetch(self, vcpu: Vcpu, step: Step, at: int) -> Exit | None:
        """Execute from ``gpa``: from a hole that is an internal error, and the guest stays where it is."""
        slot = await vcpu.vm.memslots.guest_access(step.address, False)
        if slot is None:
            return InternalErrorExit(gpa=step.address)
        if slot.invalid:
            return RetryExit(step.address)
        await self.position.set(self.after(at))
        return None

    async def complete(self, vcpu: Vcpu, pending: IoExit | MmioExit, reply: bytes | None) -> Exit | None:
        """Finish the access: its next fragment, and for a load the parts in RAM once more, as KVM re-executes it."""
        if isinstance(pending, IoExit):
            return None
        at = await self.position.get()
        step = self.program[(at - 1) % len(self.program)]
        if step.name not in ("read", "write") or not step.address <= pending.phys_addr < step.address + step.size:
            return None  # the program was replaced meanwhile
        for piece in pieces(step.address, step.size):
            if piece.gpa <= pending.phys_addr and (step.name == "write" or piece.gpa == pending.phys_addr):
                continue
            answer = await self.touch(vcpu, step, piece)
            if isinstance(answer, MmioExit) and piece.gpa > pending.phys_addr:
                return answer
        await self.position.set(self.after((at - 1) % len(self.program)))  # through jumps, now that it is finished
        return None

    def kick(self) -> None:
        """Nothing to stop: every step looks for an IPI first."""

    def interrupts_allowed(self) -> bool:
        """Always."""
        return True

    def interrupt(self, vector: int) -> None:
        """A script has no handlers: the interrupt only ends a HLT."""

    def nmi(self) -> None:
        """As ``interrupt``."""

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
        """Store values."""
        self.special.update(changes)

    def saved(self) -> dict[str, Any]:
        """The guest as JSON; its program apart, because it seldom changes."""
        return {"at": self.position.at, "stored": self.stored, "special": self.special}

    def load(self, saved: Mapping[str, Any], source: object) -> None:
        """Become the guest that was saved. EINVAL: ``source`` is no program, or has no such step."""
        self.load_program(compile_program(source), source)
        self.set_registers({"rip": saved["at"]})
        self.stored = {name: int(saved["stored"][name]) for name in self.stored}
        self.special = dict(saved["special"])

    def close(self) -> None:
        """Nothing to give back."""
