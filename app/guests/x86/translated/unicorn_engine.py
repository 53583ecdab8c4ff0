"""The engine: one Unicorn instance behind a few calls. Nothing above this and what it imports knows Unicorn.

The engine runs with its *virtual TLB*: each miss asks ``on_fill``, so translation, permissions and holes are ours and
cost nothing while they hit. Or with its own page walk, twenty times faster at a miss, with nested page tables (those of
AMD's SVM) that are ours: what they do not map ends the run before the instruction has had an effect.
All that this process can have in memory is mapped once (``host_window``): the TLB or the nested tables alone decide
what the guest reaches, so memory that comes and goes costs nothing. Two slots that share host memory share translated
code too.

It stops before the instructions that ``find_stops`` names (asked when code is
translated, not when it runs), which is how port I/O and HLT are exact at full speed.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from enum import Enum, auto
from importlib import import_module
from typing import Any, Protocol

from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from kickstand.guests.x86.state.faults import DB, GP, PF
from kickstand.guests.x86.state.registers import FLAG_VM, STATE_SIZE
from kickstand.guests.x86.translated.host_window import BLOCKS, engine_address, host_address
from kickstand.guests.x86.translated.unicorn_internals import Internals
from kickstand.guests.x86.translated.watched_stores import WatchedStores

_unicorn: Any = import_module("unicorn")  # what it exports has no usable types

FILL_READ, FILL_WRITE, FILL_FETCH = uc_const.UC_MEM_READ, uc_const.UC_MEM_WRITE, uc_const.UC_MEM_FETCH
CAN_READ, CAN_WRITE, CAN_EXECUTE = uc_const.UC_PROT_READ, uc_const.UC_PROT_WRITE, uc_const.UC_PROT_EXEC

Fill = Callable[[int, int], tuple[int, int] | None]
"""(virtual page, FILL_*) to (host page, CAN_*); None ends the run at this instruction."""

Stops = Callable[[int, int], Sequence[int]]
"""(linear address, size) of translated code to the instructions in it that must not be executed."""

_FPU_CONTROL, _SSE_CONTROL = 0x37F, 0x1F80  # after KVM_CREATE_VCPU; Unicorn starts with zeros
_PAGE = 4096
_VM_EXIT = 0x100  # EXCP_VMEXIT: the exceptions from here on are exits of SVM
_RESERVED = 8  # in the error code of a page fault
_FAULT_ADDRESS = 0x80  # control.exit_info_2 in the block that such an exit is written to


class Stop(Enum):
    """Why the translator came back."""

    RETURNED = auto()  # a stop address, the count, or emu_stop
    EXCEPTION = auto()  # ``Engine.vector`` was raised
    INVALID = auto()  # not an instruction
    ACCESS = auto()  # a page cannot be reached: the instruction has had no effect
    RESERVED = auto()  # its own walk found bits that it takes for reserved, addresses from 1 TiB on: the same
    NESTED = auto()  # the nested tables lack ``Engine.nested_fault``: the same


class _TlbEntry(Protocol):
    paddr: int
    perms: int


class _Block(Protocol):
    pc: int
    size: int
    icount: int


def _no_stops(_start: int, _size: int) -> Sequence[int]:
    return ()


def _nobody(_start: int, _size: int) -> None:
    """Nobody wants to know."""


def _no_fill(_page: int, _access: int) -> tuple[int, int] | None:
    return None


class Engine:
    """One Unicorn instance and the state it works on. Calls come from one thread, except ``stop``."""

    def __init__(self) -> None:
        self._uc = _unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self._uc.reg_write(x86_const.UC_X86_REG_FPCW, _FPU_CONTROL)
        self._uc.reg_write(x86_const.UC_X86_REG_MXCSR, _SSE_CONTROL)
        self._internals = Internals(self._uc)
        self.state = self._internals.state
        """Where the engine itself has it. While code runs its arithmetic flags, DF and RIP may lag."""
        self.reset_bytes = bytes(self.state)
        self.vector: int | None = None
        self.on_fill: Fill = _no_fill
        self.find_stops: Stops = _no_stops
        self.note_harmless: Callable[[int, int], None] = _nobody
        """Told of code that was translated with its stops and not cut: none of them is where an instruction begins."""
        self._again = 0, 0  # the block that is translated for the second time
        self.windowed = False
        """Translated code is kept in two kinds; ``run`` executes this one."""
        self._obeyed: frozenset[int] = frozenset()  # what the code that is translated next stops at
        self._wanted: Sequence[int] | None = None  # what it has to obey when the run goes on
        self.nested: tuple[int, int] | None = None
        """Host addresses of the nested tables' root, and of a page that an exit may write to; None: the virtual TLB."""
        self.nested_fault = 0, 0
        """(guest-physical address, error code) that the nested tables refused."""
        self._vm_exit = False
        self._counting = False
        self.stores = WatchedStores(self._uc, self._internals)
        """To pages of code, in runs that count."""
        self._internals.unstoppable.value = True
        self._asked = False
        self._data_refused = False
        self._uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self._uc.ctl_exits_enabled(True)
        for block, host, size in BLOCKS:
            self._uc.mem_map_ptr(block, size, uc_const.UC_PROT_ALL, host)
        self._uc.hook_add(uc_const.UC_HOOK_TLB_FILL, self._fill)
        self._uc.hook_add(uc_const.UC_HOOK_INTR, self._interrupt)
        self._uc.hook_add(uc_const.UC_HOOK_EDGE_GENERATED, self._translated)
        self._warm_up()

    def _warm_up(self) -> None:
        """Execute something: Unicorn does not report the first code it ever translates."""
        page = mmap.mmap(-1, _PAGE)
        page.write(b"\xeb\0" * 2048)  # jumps to the next instruction
        host = ctypes.addressof(ctypes.c_char.from_buffer(page))
        reported: list[int] = []

        def report(start: int, _size: int) -> Sequence[int]:
            reported.append(start)
            return ()

        self.on_fill, self.find_stops = lambda _page, _access: (host, CAN_EXECUTE), report
        self.run(4)
        if not reported:
            raise RuntimeError("this Unicorn does not report what it translates: port I/O would not be seen")
        self._internals.check(4)
        self._check_stops(page, host)
        self.recycle()

    def _check_stops(self, page: mmap.mmap, host: int) -> None:
        """A stop that comes while an instruction stores ends the run after that, or it would be executed twice."""
        page[:17] = b"\xfe\x05\x0a\0\0\0\xeb\xfe".ljust(17, b"\0")  # inc byte [16]; jmp to itself
        self.recycle()

        def fill(_page: int, access: int) -> tuple[int, int]:
            if access == FILL_WRITE:
                self.stop()
            return host, {FILL_FETCH: CAN_EXECUTE, FILL_WRITE: CAN_READ | CAN_WRITE}.get(access, CAN_READ)

        self.on_fill = fill
        self.run(0)
        if page[16] != 1 or not self.state.rip:
            raise RuntimeError("this Unicorn may execute instructions twice")

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, count: int) -> Stop:
        """Run from ``state`` for at most ``count`` instructions (0: no limit) and take the state back."""
        self._prepare(counting=count > 0)
        stop, cr2 = Stop.RETURNED, self.state.cr[2]
        try:
            self._execute(count)
        except _unicorn.UcError as error:
            stop = Stop.INVALID if error.errno == uc_const.UC_ERR_INSN_INVALID else Stop.ACCESS
        except BaseException:
            self.flush_code()  # there may be code whose stops were not looked for
            raise
        self.state.kind = 0
        if self.nested is not None:
            stop = self._end_nested(stop)
            self.state.cr[2] = cr2  # the faults of the engine's own walk are not the guest's yet
        if self._counting and (self._data_refused or self.vector not in (None, DB)):
            # Code that counts has collected the flags in ``cc_src`` before each instruction, but when one is left in
            # its middle Unicorn takes that for an operand of the last computation. #DB comes after an instruction.
            self.state.take_source_flags()
        return Stop.EXCEPTION if self.vector is not None else stop

    def _end_nested(self, stop: Stop) -> Stop:
        """What a fault of the engine's own walk amounts to: the instruction is looked at more closely."""
        state = self.state
        state.nested_paging = False
        faulted = self.vector == PF or (self.vector == GP and not state.eflags & FLAG_VM)
        reserved = self.vector == PF and state.error_code & _RESERVED
        if not faulted and not self._vm_exit:
            return stop
        self._data_refused |= bool(state.miss_return)
        self.vector = None
        if not self._vm_exit:
            return Stop.RESERVED if reserved else Stop.ACCESS
        self.nested_fault = self._fault_address.value, state.error_code
        return Stop.NESTED

    def use_nested(self, tables: tuple[int, int] | None) -> None:
        """Walk pages with these nested tables (host addresses as in ``nested``), or use the virtual TLB again."""
        self.nested = tables
        self._uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL if tables is None else uc_const.UC_TLB_CPU)
        if tables is not None:
            self._fault_address = ctypes.c_uint64.from_address(tables[1] + _FAULT_ADDRESS)
        self.flush_tlb()

    def _execute(self, count: int) -> None:
        self._uc.emu_start(self.state.rip, 0, 0, count)
        while self._wanted is not None and not self._asked:
            self._set_stops(self._wanted)
            self._wanted = None
            self._uc.emu_start(self._uc.reg_read(x86_const.UC_X86_REG_RIP), 0, 0, count)

    def _prepare(self, *, counting: bool) -> None:
        if self._counting != counting:
            self.flush_code()  # code that was translated for the other kind of run does not count, or still does
            self._counting = counting
            # Else Unicorn looks for stops after each access to memory too, and goes back to the instruction, whose
            # store is done. Code that counts can only be left like that; it is not stopped from outside.
            self._internals.unstoppable.value = not counting
        self._data_refused = self._asked = self._vm_exit = False
        self.stores.run_begins()
        self._wanted = self.vector = None
        self._set_stops(())
        self.state.kind = int(self.windowed)
        self.state.old_exception = -1  # else a second exception would count as a double fault
        self.state.is_software_int = 0  # else an exit of SVM would count as INT
        if self.nested is not None:
            self.state.nest(engine_address(self.nested[0]), engine_address(self.nested[1]))

    def code_page(self, page: int) -> int:
        """The host page that code at this linear page was just translated from; in ``find_stops`` only.

        The TLB has it then. Page tables may say something else already.
        """
        return self._internals.executed_page(page)

    def stop(self) -> None:
        """End ``run`` soon; any thread. Lost if ``run`` has not begun."""
        self._asked = True
        self._uc.emu_stop()

    def _fill(self, _uc: object, page: int, access: int, entry: _TlbEntry, _data: object) -> bool:
        answer = self.on_fill(page, access)
        if answer is None:
            self._data_refused |= access != FILL_FETCH
            return False
        if self._counting and access != FILL_FETCH:
            self.state.flags_are_collected()  # the miss has told the engine otherwise
        host, entry.perms = answer
        entry.paddr = engine_address(host)
        return True

    def _translated(self, _uc: object, block: _Block, _before: object, _data: object) -> None:
        """Code was translated and comes next: if a stop is in it, have it translated again so that it ends there.

        Unicorn looks at its table of stops when it translates. It also walks through all of it at the end of a run,
        and drops code that was translated up to them: so the table is empty but while this block is translated.
        """
        stops = self.find_stops(block.pc, block.size)
        if block.icount == 1:
            # An instruction that stores to its own block is repeated like that. If it were to be translated once more
            # for what lies in its middle, it would come with its block, and be repeated again.
            stops = [stop for stop in stops if stop == block.pc]
            self.stores.repeat(block.pc)
        if self._obeyed.issuperset(stops):  # what is left of them lies in the middle of instructions
            if self._obeyed and self._again == (block.pc, block.size):
                self.note_harmless(block.pc, block.size)
            self._set_stops(())
            return
        self._again = block.pc, block.size
        self._uc.ctl_remove_cache(block.pc, block.pc + 1)
        stops = [*self._obeyed, *stops]  # more each time, so that this ends
        if self._counting:
            self._set_stops(stops)
            self._uc.reg_write(x86_const.UC_X86_REG_RIP, self._uc.reg_read(x86_const.UC_X86_REG_RIP))  # come again
            self._internals.rip_written.value = (
                False  # else the run ends with what its last access to memory left in ``cc_op``
            )
        else:
            # Not like that here: until the end of the run Unicorn would take it that RIP is up to date whenever a
            # stop asks for it, while code that was chained runs on without.
            self._wanted = stops
            self._uc.emu_stop()

    def _interrupt(self, _uc: object, vector: int, _data: object) -> None:
        if vector >= _VM_EXIT:
            self._vm_exit = True
        else:
            self.vector = vector
        self._uc.emu_stop()

    def watch_accesses(self, callback: Callable[[int, int, int, int], None]) -> None:
        """Call ``callback(FILL_*, host address, size, value)`` before each read and write of data."""

        def hook(_uc: object, access: int, address: int, size: int, value: int, _data: object) -> None:
            callback(access, host_address(address), size, value)

        self._uc.hook_add(uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE, hook)

    def watch_instructions(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(size)`` before each instruction."""

        def hook(_uc: object, _address: int, size: int, _data: object) -> None:
            callback(size)

        self._uc.hook_add(uc_const.UC_HOOK_CODE, hook)

    # -- translated code --------------------------------------------------------------------------------------

    def _set_stops(self, addresses: Sequence[int]) -> None:
        if not addresses and not self._obeyed:
            return
        items = (ctypes.c_uint64 * len(addresses))(*addresses)
        pointer = ctypes.cast(items, ctypes.c_void_p)
        self._uc.ctl(uc_const.UC_CTL_UC_EXITS, uc_const.UC_CTL_IO_WRITE, pointer, ctypes.c_size_t(len(addresses)))
        self._obeyed = frozenset(addresses)

    def flush_tlb(self) -> None:
        """Ask ``on_fill`` again for every page."""
        self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    def flush_code(self) -> None:
        """Forget all translated code; costs about a millisecond."""
        self._uc.ctl_flush_tb()

    def forget_page(self, host: int) -> None:
        """Forget the code translated from this host page."""
        fill, self.on_fill = self.on_fill, lambda _page, _access: (host, CAN_EXECUTE)
        nested = self.nested
        self.use_nested(None)  # the removal looks the page up like a fetch, so the answer above must be asked for
        self._uc.ctl_remove_cache(host, host + _PAGE)
        self.stores.unwatch(host)
        self.on_fill = fill
        self.use_nested(nested)

    def recycle(self) -> None:
        """Drop everything that belongs to one guest."""
        self.on_fill, self.find_stops, self.windowed = _no_fill, _no_stops, False
        self.note_harmless = _nobody
        self._set_stops(())
        self.stores.unwatch_all()
        self.flush_code()
        self.use_nested(None)
        ctypes.memmove(ctypes.addressof(self.state), self.reset_bytes, STATE_SIZE)
