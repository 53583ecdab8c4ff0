"""The only file that calls Unicorn.

The engine runs with its *virtual TLB*: each miss asks ``on_fill``, so translation, permissions and holes are ours and
cost nothing while they hit. Physical addresses inside the engine are host addresses: two slots that share host
memory then share translated code too. It stops before the instructions named by ``set_stops`` (checked when code
is translated, not when it runs), which is how port I/O and HLT are exact at full speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from enum import Enum, auto
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from app.guests.x86.faults import DB
from app.guests.x86.registers import GPR_NAMES, STATE_SIZE, CpuState

if TYPE_CHECKING:
    from array import array

_unicorn: Any = import_module("unicorn")  # what it exports has no usable types

FILL_READ, FILL_WRITE, FILL_FETCH = uc_const.UC_MEM_READ, uc_const.UC_MEM_WRITE, uc_const.UC_MEM_FETCH
CAN_READ, CAN_WRITE, CAN_EXECUTE = uc_const.UC_PROT_READ, uc_const.UC_PROT_WRITE, uc_const.UC_PROT_EXEC

Fill = Callable[[int, int], tuple[int, int] | None]
"""(virtual page, FILL_*) to (host page, CAN_*); None ends the run at this instruction."""

_FPU_CONTROL, _SSE_CONTROL = 0x37F, 0x1F80  # after KVM_CREATE_VCPU; Unicorn starts with zeros
_CONTEXT_HEADER = 40  # bytes of Unicorn's own before the CPU structure


class Stop(Enum):
    """Why the translator came back."""

    RETURNED = auto()  # a stop address, the count, or emu_stop
    EXCEPTION = auto()  # ``Engine.vector`` was raised
    INVALID = auto()  # not an instruction
    ACCESS = auto()  # a TLB fill was refused: the instruction has had no effect


class _TlbEntry(Protocol):
    paddr: int
    perms: int


def _no_fill(_page: int, _access: int) -> tuple[int, int] | None:
    return None


class Engine:
    """One Unicorn instance and the state it works on. Calls come from one thread, except ``stop``."""

    def __init__(self) -> None:
        self._uc = _unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self._uc.reg_write(x86_const.UC_X86_REG_FPCW, _FPU_CONTROL)
        self._uc.reg_write(x86_const.UC_X86_REG_MXCSR, _SSE_CONTROL)
        self._context = self._uc.context_save()
        if self._context.size != _CONTEXT_HEADER + STATE_SIZE:
            raise RuntimeError("this Unicorn keeps its CPU state in a form that is not known here")
        address = ctypes.cast(self._context.context, ctypes.c_void_p).value or 0
        self.state = CpuState.from_address(address + _CONTEXT_HEADER)
        self._check_layout()
        self.reset_bytes = bytes(self.state)
        self.vector: int | None = None
        self.on_fill: Fill = _no_fill
        self._counting = False
        self._data_refused = False
        self._mapped: set[tuple[int, int]] = set()
        self._uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self._uc.ctl_exits_enabled(True)
        self._uc.hook_add(uc_const.UC_HOOK_TLB_FILL, self._fill)
        self._uc.hook_add(uc_const.UC_HOOK_INTR, self._interrupt)

    def _check_layout(self) -> None:
        """Write through the public calls and look through the structure."""
        for index, name in enumerate(GPR_NAMES):
            self._uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), 0x1234567800000000 + index)
        self._uc.reg_write(x86_const.UC_X86_REG_FS_BASE, 0xABCD0001)
        self._uc.reg_write(x86_const.UC_X86_REG_TR, (0x28, 0xABCD0002, 0x67, 0x8B00))
        self._uc.reg_write(x86_const.UC_X86_REG_CR2, 0xABCD0003)
        original = bytes(self.state)
        self._uc.context_update(self._context)
        state = self.state
        seen = [*state.gpr, state.segment[4].base, state.tr.base, state.cr[2], state.efer, state.old_exception]
        expected = [*(0x1234567800000000 + n for n in range(16)), 0xABCD0001, 0xABCD0002, 0xABCD0003, 0x500, -1]
        if seen != expected:
            raise RuntimeError("this Unicorn keeps its CPU state in a form that is not known here")
        ctypes.memmove(ctypes.addressof(state), original, STATE_SIZE)

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, count: int) -> Stop:
        """Run from ``state`` for at most ``count`` instructions (0: no limit) and take the state back."""
        self._prepare(counting=count > 0)
        stop = Stop.RETURNED
        try:
            self._uc.emu_start(self.state.rip, 0, 0, count)
        except _unicorn.UcError as error:
            stop = Stop.INVALID if error.errno == uc_const.UC_ERR_INSN_INVALID else Stop.ACCESS
        self._uc.context_update(self._context)
        if self._counting and (self._data_refused or self.vector not in (None, DB)):
            # Code that counts has collected the flags in ``cc_src`` before each instruction, but when one is left in
            # its middle Unicorn takes that for an operand of the last computation. #DB comes after an instruction.
            self.state.take_source_flags()
        return Stop.EXCEPTION if self.vector is not None else stop

    def _prepare(self, *, counting: bool) -> None:
        if self._counting != counting:
            self.flush_code()  # code that was translated for the other kind of run does not count, or still does
            self._counting = counting
        self._data_refused = False
        self.vector = None
        self.state.old_exception = -1  # else a second exception would count as a double fault
        self._uc.context_restore(self._context)

    def peek(self) -> None:
        """Bring ``state`` up to date from inside a TLB fill; RIP and arithmetic flags may lag."""
        self._uc.context_update(self._context)

    def read_msr(self, index: int) -> int:
        """Read a model-specific register of ``state``."""
        self._uc.context_restore(self._context)
        value: int = self._uc.msr_read(index)
        return value

    def stop(self) -> None:
        """End ``run`` soon; any thread. Lost if ``run`` has not begun."""
        self._uc.emu_stop()

    def _fill(self, _uc: object, page: int, access: int, entry: _TlbEntry, _data: object) -> bool:
        answer = self.on_fill(page, access)
        if answer is None:
            self._data_refused |= access != FILL_FETCH
            return False
        entry.paddr, entry.perms = answer
        return True

    def _interrupt(self, _uc: object, vector: int, _data: object) -> None:
        self.vector = vector
        self._uc.emu_stop()

    def watch_accesses(self, callback: Callable[[int, int, int, int], None]) -> None:
        """Call ``callback(FILL_*, engine address, size, value)`` before each read and write of data."""

        def hook(_uc: object, access: int, address: int, size: int, value: int, _data: object) -> None:
            callback(access, address, size, value)

        self._uc.hook_add(uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE, hook)

    def watch_instructions(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(size)`` before each instruction."""

        def hook(_uc: object, _address: int, size: int, _data: object) -> None:
            callback(size)

        self._uc.hook_add(uc_const.UC_HOOK_CODE, hook)

    # -- memory and translated code --------------------------------------------------------------------------

    def map(self, intervals: Iterable[tuple[int, int]]) -> None:
        """Let exactly these (start, end) stretches of host memory be used."""
        wanted = set(intervals)
        if self._mapped - wanted:
            # Unmapping looks the pages up like a fetch at their address; a refused fetch there would leave the
            # engine with an error that ends the next run.
            fill, self.on_fill = self.on_fill, lambda page, _access: (page, CAN_EXECUTE)
            self.flush_tlb()
            for start, end in self._mapped - wanted:
                self._uc.mem_unmap(start, end - start)
            self.on_fill = fill
            self.flush_tlb()
        for start, end in wanted - self._mapped:
            self._uc.mem_map_ptr(start, end - start, uc_const.UC_PROT_ALL, start)
        self._mapped = wanted

    def set_stops(self, addresses: array[int] | None) -> None:
        """Stop before the instructions at these linear addresses. Only code translated later obeys."""
        count = len(addresses) if addresses else 0
        items = (ctypes.c_uint64 * count).from_buffer(addresses) if addresses else (ctypes.c_uint64 * 1)()
        pointer = ctypes.cast(items, ctypes.c_void_p)
        self._uc.ctl(uc_const.UC_CTL_UC_EXITS, uc_const.UC_CTL_IO_WRITE, pointer, ctypes.c_size_t(count))

    def flush_tlb(self) -> None:
        """Ask ``on_fill`` again for every page."""
        self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    def flush_code(self) -> None:
        """Forget all translated code; costs about a millisecond."""
        self._uc.ctl_flush_tb()

    def forget_page(self, host: int) -> None:
        """Forget the code translated from this host page."""
        fill, self.on_fill = self.on_fill, lambda _page, _access: (host, CAN_EXECUTE)
        self.flush_tlb()  # the removal looks the page up like a fetch, so the answer above must be asked for
        self._uc.ctl_remove_cache(host, host + 4096)
        self.on_fill = fill
        self.flush_tlb()

    def recycle(self) -> None:
        """Drop everything that belongs to one guest."""
        self.on_fill = _no_fill
        self.set_stops(None)
        self.map(())
        self.flush_code()
        self.flush_tlb()
        ctypes.memmove(ctypes.addressof(self.state), self.reset_bytes, STATE_SIZE)


class EnginePool:
    """Engines that were used before: making one takes more than ten milliseconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[Engine] = []

    def take(self) -> Engine:
        """Return a free engine or make one."""
        try:
            return self._free.pop()
        except IndexError:
            return Engine()

    def give_back(self, engine: Engine) -> None:
        """Keep the engine for the next guest, without anything of the last."""
        engine.recycle()
        if len(self._free) < self._limit:
            self._free.append(engine)


ENGINES = EnginePool(limit=16)
