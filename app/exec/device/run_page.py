"""``struct kvm_run`` as bytes that the program has mapped too."""

from __future__ import annotations

import errno
import struct

from kickstand.core.atomics import atomic
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.memslots.dirty_ring import ENTRY, OFFSET_PAGES
from kickstand.core.run.exits import (
    DebugExit,
    EoiExit,
    HypercallExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    MsrExit,
    TprAccessExit,
    UserExit,
)
from kickstand.core.run.run_page import KvmRun
from kickstand.core.uapi import KVM_RUN, MMAP_SIZE, PAGE_SIZE, PIO_PAGE_OFFSET, Cap, ExitReason, check_extension
from kickstand.core.vcpu import Vcpu
from kickstand.exec.device import sync_regs
from kickstand.exec.host import linux

_WINDOW = KVM_RUN.offset("request_interrupt_window")
_IMMEDIATE = KVM_RUN.offset("immediate_exit")
_REASON = KVM_RUN.offset("exit_reason")
_READY = KVM_RUN.offset("ready_for_interrupt_injection")
_UNION = KVM_RUN.offset("exit")
COALESCED_PAGE_OFFSET = check_extension(Cap.COALESCED_MMIO)
_PORT_DATA = PIO_PAGE_OFFSET * PAGE_SIZE
_CR8, _CR8_AT, _HIGHEST_PRIORITY = struct.Struct("=Q"), KVM_RUN.offset("cr8"), 15
_RING_AT = OFFSET_PAGES * PAGE_SIZE
_WORD = struct.Struct("=I")
_SAVED = struct.Struct("=BBHQQ")  # ready_for_interrupt_injection, if_flag, flags, cr8, apic_base
_IO = struct.Struct("=BBHIQ")
_MMIO = struct.Struct("=Q8sIB")
_MMIO_DATA = _UNION + 8
_TPR_ACCESS = struct.Struct("=QI")
_INTERNAL = struct.Struct("=II16Q")
_MSR = struct.Struct("=B7xIIQ")
_MSR_DATA = _UNION + 16
_HYPERCALL = struct.Struct("=8QI4x")
_HYPERCALL_RET = _UNION + 56
_DEBUG = struct.Struct("=I4x3Q")


def mapping_size(ring_entries: int) -> int:
    """How many bytes of a vCPU a program can map: the run pages, and its dirty ring far behind them."""
    return _RING_AT + ring_entries * ENTRY.size if ring_entries else MMAP_SIZE


class MappedPage(KvmRun):
    """The pages of one vCPU: every operation reads and writes the bytes that the program sees."""

    __slots__ = ("coalesced", "ring", "view", "_size", "_address", "_kicked")

    def __init__(self, descriptor: int, size: int = MMAP_SIZE) -> None:
        self._size = size
        self._address = linux.map_shared(descriptor, size)
        self.view = linux.view_of(self._address, size)
        self.ring = self.view[_RING_AT:] if size > MMAP_SIZE else None
        self.coalesced = self.view[COALESCED_PAGE_OFFSET * PAGE_SIZE :][:PAGE_SIZE]
        self._kicked = False
        super().__init__()

    def close(self) -> None:
        """Unmap it; the vCPU must not run any more."""
        self.view = memoryview(bytes(MMAP_SIZE))
        linux.unmap(self._address, self._size)

    def load_registers(self, vcpu: AnyVcpu) -> int:
        """``sync_regs``, and CR8 where the APIC is the program's."""
        r = sync_regs.load(self.view, vcpu)
        if not r and vcpu.apic is None and isinstance(vcpu, Vcpu):
            (cr8,) = _CR8.unpack_from(self.view, _CR8_AT)
            if cr8 > _HIGHEST_PRIORITY:
                return -errno.EINVAL
            vcpu.guest.set_task_priority(cr8)
        return r

    def store_registers(self, vcpu: AnyVcpu) -> None:
        """``store_regs``."""
        sync_regs.store(self.view, vcpu)

    @atomic
    async def fill(self, exit: UserExit) -> None:
        """Describe an exit to userspace."""
        self.exit_reason = exit.reason
        self.exit = exit
        view = self.view
        _WORD.pack_into(view, _REASON, exit.reason)
        if isinstance(exit, IoExit):
            _IO.pack_into(view, _UNION, exit.direction == "out", exit.size, exit.port, exit.count, _PORT_DATA)
            view[_PORT_DATA : _PORT_DATA + len(exit.data)] = exit.data
        elif isinstance(exit, MmioExit):
            data = exit.data if exit.is_write else bytes(view[_MMIO_DATA : _MMIO_DATA + 8])
            _MMIO.pack_into(view, _UNION, exit.phys_addr, data, exit.len, exit.is_write)
        elif isinstance(exit, MsrExit):
            _MSR.pack_into(view, _UNION, 0, exit.msr_reason, exit.index, exit.value)
        elif isinstance(exit, HypercallExit):
            _HYPERCALL.pack_into(view, _UNION, exit.nr, *exit.args, 0, exit.longmode)
        elif isinstance(exit, DebugExit):
            _DEBUG.pack_into(view, _UNION, exit.exception, exit.pc, exit.dr6, exit.dr7)
        elif isinstance(exit, EoiExit):
            view[_UNION] = exit.vector
        elif isinstance(exit, TprAccessExit):
            _TPR_ACCESS.pack_into(view, _UNION, exit.rip, exit.is_write)
        elif isinstance(exit, InternalErrorExit):
            data16 = (*exit.data, *(0,) * (16 - len(exit.data)))
            _INTERNAL.pack_into(view, _UNION, exit.suberror, len(exit.data), *data16)

    @atomic
    async def interrupted(self) -> None:
        """A signal ends KVM_RUN: KVM_EXIT_INTR."""
        self.exit_reason = ExitReason.INTR
        _WORD.pack_into(self.view, _REASON, ExitReason.INTR)

    @atomic
    async def take_reply(self) -> bytes | None:
        """The device's answer: what lies in the page now."""
        return self.reply_bytes()

    def reply_bytes(self) -> bytes | None:
        """What the program has put where the access that waits has its data; None if none waits for any."""
        exit = self.exit
        if isinstance(exit, MsrExit):
            return bytes(self.view[_UNION : _UNION + 1]) + bytes(self.view[_MSR_DATA : _MSR_DATA + 8])
        if isinstance(exit, HypercallExit):
            return bytes(self.view[_HYPERCALL_RET : _HYPERCALL_RET + 8])
        if not isinstance(exit, IoExit | MmioExit) or not exit.reply_length:
            return None
        start = _PORT_DATA if isinstance(exit, IoExit) else _MMIO_DATA
        return bytes(self.view[start : start + exit.reply_length])

    @property
    def immediate_exit(self) -> bool:
        """The program's byte, or a kick that a variant does in userspace: that one leaves the byte alone."""
        return self._kicked or bool(self.view[_IMMEDIATE])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._kicked = value

    @property
    def window_requested(self) -> bool:
        """The program's ``request_interrupt_window``."""
        return bool(self.view[_WINDOW])

    @atomic
    async def wants_interrupt_window(self) -> bool:
        """The kernel reads ``request_interrupt_window``."""
        return self.window_requested

    def save(self, guest: object, *, irqchip: bool) -> None:
        """``post_kvm_run_save``: what a VMM looks at after every run."""
        window = getattr(guest, "window", None)
        if window is not None:
            ready, enabled, cr8, apic_base = window()
            _SAVED.pack_into(self.view, _READY, irqchip or ready, enabled, 0, cr8, apic_base)
