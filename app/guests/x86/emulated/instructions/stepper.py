"""One instruction, with every access to memory in our hands.

A second engine executes the single instruction on scratch pages: a fresh scratch page stands for each virtual page
it touches, and a hook supplies what is read and collects what is written. So an instruction that meets a hole, a
readonly slot or a page that is not there has no effect at all until everything it reads is known; then it is done
once. This is what ``x86_emulate_instruction`` does for KVM, for all instructions the translator knows.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kickstand.guests.x86.emulated.decoding.decode import shape
from kickstand.guests.x86.emulated.decoding.emulable import is_emulated
from kickstand.guests.x86.memory.page_walk import FETCH, READ, WRITE
from kickstand.guests.x86.memory.physical import PAGE, PAGE_MASK, AccessStoppedError, Fragment, page_pieces
from kickstand.guests.x86.memory.virtual import MAX_INSTRUCTION
from kickstand.guests.x86.state.faults import GP, PF, SS_FAULT, DeviceAccessError, GuestFaultError
from kickstand.guests.x86.state.registers import STATE_SIZE
from kickstand.guests.x86.translated.unicorn_engine import (
    CAN_EXECUTE,
    CAN_READ,
    CAN_WRITE,
    FILL_FETCH,
    FILL_READ,
    Engine,
    Stop,
)

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

_DATA_PAGES = 128  # more than any one instruction touches
_CODE_PAIRS = 512  # instructions whose translation is kept
_STEPS = 4096  # Unicorn translates some instructions anew each time, and gives no room back before it forgets all
_VECTOR, _HALF, _SELECTOR = 16, 8, 2
_SEGMENT_LOADS = frozenset((0x07, 0x17, 0x1F, 0x8E, 0x9A, 0xC4, 0xC5, 0xCA, 0xCB, 0xCF, 0xEA, 0xFF, 0x0F))
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


@dataclass(frozen=True, slots=True)
class NeedRead:
    """A read that is not all in memory: ``data`` holds what is, the fragments are missing."""

    data: bytearray
    missing: list[Fragment]


Interruption = NeedRead | GuestFaultError | DeviceAccessError | AccessStoppedError


@dataclass(slots=True)
class Step:
    """What became of one instruction. The CPU state was changed only if ``interruption`` is None.

    ``writes`` are its stores in order, each as (gpa, bytes) in one page, ``accesses`` all of them as (linear address,
    size, it was a write); ``vector`` is the exception or
    software interrupt it raised, whose details are in the state.
    """

    interruption: Interruption | None = None
    reads: list[bytes] = field(default_factory=list)
    writes: list[list[tuple[int, bytes]]] = field(default_factory=list)
    accesses: list[tuple[int, int, bool]] = field(default_factory=list)
    vector: int | None = None
    invalid: bool = False


class Stepper:
    """Executes single instructions for any CPU; one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine = Engine()
        self._area = mmap.mmap(-1, (_DATA_PAGES + 2 * _CODE_PAIRS + 1) * PAGE)
        self._data = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        self._code = self._data + _DATA_PAGES * PAGE
        self._blank = self._code + 2 * _CODE_PAIRS * PAGE
        self._known: dict[tuple[int, bytes], int] = {}
        self._steps = 0  # since translated code was forgotten
        self._engine.on_fill = self._fill
        self._engine.watch_accesses(self._access)
        self._engine.watch_instructions(self._begins)

    def step(
        self,
        state: CpuState,
        memory: VirtualMemory,
        code: bytes,
        reads: list[bytes],
        first: tuple[int, int] | None = None,
    ) -> Step:
        """Execute the instruction at RIP whose bytes are ``code``; ``reads`` answers its first reads.

        ``first``: the (address, size) that KVM reads first, if that is not what the engine reads first.
        """
        with self._lock:
            self._begin(state, memory, code, reads)
            self._first = first
            self._ahead: bytes | None = None
            mine = self._engine.state
            pointers = bytes(state.breakpoints)
            ctypes.memmove(ctypes.addressof(mine), ctypes.addressof(state), STATE_SIZE)
            ctypes.memset(ctypes.addressof(mine.breakpoints), 0, len(pointers))
            stop = self._engine.run(1)
            step = self._step
            if step.interruption is None and stop is Stop.ACCESS:
                step.interruption = DeviceAccessError(self._memory.gpa(self._linear, FETCH, user=self._user))
            if step.interruption is None:
                self._commit(state, pointers, stop)
            return step

    def _commit(self, state: CpuState, pointers: bytes, stop: Stop) -> None:
        ctypes.memmove(ctypes.addressof(state), ctypes.addressof(self._engine.state), STATE_SIZE)
        ctypes.memmove(ctypes.addressof(state.breakpoints), pointers, len(pointers))
        self._step.vector = self._engine.vector
        self._step.invalid = stop is Stop.INVALID
        if self._downwards:
            self._writes.reverse()
        for address, data in self._writes:
            self._step.writes.append(
                [
                    (self._pages[piece & PAGE_MASK] | piece & ~PAGE_MASK, data[offset : offset + size])
                    for piece, offset, size in page_pieces(address, len(data))
                ]
            )

    def _begin(self, state: CpuState, memory: VirtualMemory, code: bytes, reads: list[bytes]) -> None:
        self._state, self._memory = state, memory
        self._step = Step(reads=list(reads))
        self._answered = 0
        self._slots: dict[int, int] = {}
        self._virtual: list[int] = []
        self._pages: dict[int, int] = {}
        self._writes: list[tuple[int, bytes]] = []
        self._linear = state.linear_rip
        self._user = state.cpl == 3  # noqa: PLR2004 - ring 3
        self._opcode = next((byte for byte in code if byte not in _PREFIXES), 0)
        seen = shape(code, state.bits)
        self._emulated = is_emulated(seen)
        self._joined, self._downwards, self._seen = seen.joined, seen.pushes_all, seen
        self._store_limit = _SELECTOR if seen.pushes_selector else _VECTOR
        self._alignment = _VECTOR if seen.is_aligned_vector else 1
        self._code_page = self._place_code(code)
        self._fetched = len(code)
        self._next_page = self._begun = False
        self._steps += 1
        if self._steps >= _STEPS:
            self._forget_code()
        self._engine.flush_tlb()

    def _forget_code(self) -> None:
        self._steps = 0
        self._engine.flush_code()

    def _place_code(self, code: bytes) -> int:
        """Put the bytes on a pair of pages that never held others, so that no old translation applies."""
        key = (self._linear, code)
        if key not in self._known:
            if len(self._known) == _CODE_PAIRS:
                self._known.clear()
                self._forget_code()
            self._known[key] = self._code + 2 * len(self._known) * PAGE
            ctypes.memmove(self._known[key] + self._linear % PAGE, code, len(code))
        return self._known[key]

    # -- what the engine asks --------------------------------------------------------------------------------

    def _fill(self, page: int, access: int) -> tuple[int, int] | None:
        if access == FILL_FETCH:
            return self._fill_code(page)
        # Always granted: only the hook knows the exact address, which a fault must report.
        return self._data + self._slot(page) * PAGE, CAN_READ | CAN_WRITE

    def _fill_code(self, page: int) -> tuple[int, int] | None:
        first = self._linear & PAGE_MASK
        if page == first:
            return self._code_page, CAN_EXECUTE
        if page == first + PAGE:
            self._next_page = True
            return self._code_page + PAGE, CAN_EXECUTE
        return self._blank, CAN_EXECUTE  # the next instruction is looked up already; it is not executed

    def _begins(self, size: int) -> None:
        """The instruction is about to be executed: end the step if it needs bytes that could not be fetched.

        Blocks are translated to their end, so that the next page is also asked for when only others need it. The
        size of an invalid instruction is not known (a huge number).
        """
        if self._begun:
            return
        self._begun = True
        if self._fetched < min(size, MAX_INSTRUCTION) and (self._next_page or size <= MAX_INSTRUCTION):
            try:
                self._memory.fetch_part(self._fetched, 1)
            except (GuestFaultError, AccessStoppedError, DeviceAccessError) as reason:
                self._interrupt(reason)

    def _slot(self, page: int) -> int:
        if page not in self._slots:
            self._slots[page] = len(self._virtual) % _DATA_PAGES
            self._virtual.append(page)
        return self._slots[page]

    def _translate(self, virtual: int, size: int, access: int) -> None:
        """Find the guest-physical pages; raises what keeps the access from being done or emulated."""
        for piece, _, _ in page_pieces(virtual, size):
            user = self._user and not self._is_descriptor_access(piece)
            gpa = self._gpa(piece, access, user=user)
            # Now: nothing may fail once the instruction is done.
            if not self._memory.check(gpa, access) and not self._emulated:
                raise DeviceAccessError(gpa)
            self._pages[piece & PAGE_MASK] = gpa & PAGE_MASK

    def _gpa(self, address: int, access: int, *, user: bool) -> int:
        try:
            return self._memory.gpa(address, access, user=user)
        except GuestFaultError as fault:
            if fault.vector == GP and self._seen.is_stack_access:  # an address that is not canonical
                raise GuestFaultError(SS_FAULT) from None
            if fault.vector == PF and self._seen.modifies:
                raise GuestFaultError(PF, fault.error | WRITE, fault.address) from None
            raise

    def _is_descriptor_access(self, address: int) -> bool:
        """Loads of segments read the descriptor tables with supervisor rights, also in ring 3."""
        if self._opcode not in _SEGMENT_LOADS:
            return False
        tables = (self._state.gdt, self._state.ldt, self._state.tr)
        return any(table.base <= address <= table.base + table.limit for table in tables)

    def _access(self, access: int, address: int, size: int, value: int) -> None:
        if self._step.interruption is not None:
            return
        slot, offset = divmod(address - self._data, PAGE)
        virtual = self._virtual[slot] + offset
        self._step.accesses.append((virtual, size, access != FILL_READ))
        try:
            self._check_alignment(virtual)
            if access == FILL_READ:
                self._supply(virtual, size)
            else:
                self._store(virtual, (value & (1 << 8 * size) - 1).to_bytes(size, "little")[: self._store_limit])
        except (GuestFaultError, AccessStoppedError, DeviceAccessError) as reason:
            self._interrupt(reason)

    def _check_alignment(self, virtual: int) -> None:
        """The engine does not look at it. It does the two halves of a vector one after the other."""
        if virtual % self._alignment:
            raise GuestFaultError(GP)
        self._alignment = 1

    def _store(self, virtual: int, data: bytes) -> None:
        self._translate(virtual, len(data), WRITE)
        if self._writes and len(data) == _HALF and self._writes[-1][0] + _HALF == virtual:
            virtual, half = self._writes.pop()  # the other half of a vector, or of CMPXCHG16B
            data = half + data
        self._writes.append((virtual, data))

    def _supply(self, virtual: int, size: int) -> None:
        """Put what the coming read shall see on the scratch pages."""
        data = self._read(virtual, size)
        if data is None:
            return
        for piece, offset, length in page_pieces(virtual, size):
            target = self._data + self._slot(piece & PAGE_MASK) * PAGE + piece % PAGE
            ctypes.memmove(target, data[offset : offset + length], length)

    def _read(self, virtual: int, size: int) -> bytes | None:
        if self._joined:
            return self._read_joined(virtual, size)
        if self._first is None:
            return self._take(virtual, size)
        if self._ahead is None:
            self._ahead = self._take(*self._first)
            return None if self._ahead is None else self._take(virtual, size)
        return self._ahead

    def _read_joined(self, virtual: int, size: int) -> bytes | None:
        """Both parts of a far pointer or a vector are one operand; what is read after them are descriptors."""
        if self._ahead is None:
            data = self._take(virtual, size + self._joined)
            self._ahead = None if data is None else data[size:]
            return None if data is None else data[:size]
        self._joined = 0
        return self._ahead

    def _take(self, virtual: int, size: int) -> bytes | None:
        """The next read in KVM's order."""
        if self._answered < len(self._step.reads):
            # Userspace may have changed the CPU's mode meanwhile: the same bytes can now read another length.
            data = self._step.reads[self._answered][:size].ljust(size, b"\0")
        else:
            self._translate(virtual, size, READ)
            parts, missing = self._memory.read_at(self._pages, virtual, size)
            if missing:
                self._interrupt(NeedRead(parts, missing))
                return None
            data = bytes(parts)
            self._step.reads.append(data)
        self._answered += 1
        return self._after_own_writes(virtual, data)

    def _after_own_writes(self, virtual: int, data: bytes) -> bytes:
        """An instruction that reads what it has just written sees its own bytes."""
        if not self._writes:
            return data
        result = bytearray(data)
        for start, written in self._writes:
            for index, byte in enumerate(written):
                if 0 <= start + index - virtual < len(result):
                    result[start + index - virtual] = byte
        return bytes(result)

    def _interrupt(self, reason: Interruption) -> None:
        if self._step.interruption is None:
            self._step.interruption = reason
            self._engine.stop()


class _Shared:
    """The one stepper of the process, made when it is first needed."""

    stepper: Stepper | None = None
    lock = threading.Lock()


def shared_stepper() -> Stepper:
    """Return the stepper."""
    with _Shared.lock:
        if _Shared.stepper is None:
            _Shared.stepper = Stepper()
        return _Shared.stepper
