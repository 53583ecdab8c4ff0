"""Accesses of a guest that the kernel answers by itself: APIC page, IOAPIC, 8259 pair, 8254, the APIC's MSRs.

Userspace sees none of them. A guest engine stops at such an access as at any other, and goes on with the answer.
"""

from __future__ import annotations

from kickstand.core.arch.irq.chips import Raised
from kickstand.core.arch.irq.lapic import Effect, Lapic
from kickstand.core.arch.irq.mode import RefusedError
from kickstand.core.errors import KvmError
from kickstand.core.guest import Cpu, Guest
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import (
    Asked,
    Exit,
    HypercallExit,
    IoExit,
    MmioExit,
    MsrExit,
    TprExit,
    WindowExit,
)
from kickstand.core.wiring.interrupts import PIT_TIMER, Interrupts
from kickstand.core.wiring.task_priority import TaskPriority

APIC_BASE, TSC_DEADLINE = 0x1B, 0x6E0
X2APIC = range(0x800, 0x900)
APIC_MSRS = frozenset((APIC_BASE, TSC_DEADLINE, *X2APIC))
"""What RDMSR, WRMSR, KVM_GET_MSRS and KVM_SET_MSRS of a vCPU with an APIC in the kernel find here."""
REFUSED = b"\1" + bytes(8)  # an MSR's answer: an error, no value
DONE = bytes(9)
OWN = (WindowExit, TprExit)  # it is the kernel that looks for interrupts then


class InKernel:
    """What one vCPU reaches of the controllers. ``answer`` runs on the vCPU's own thread, inside KVM_RUN."""

    def __init__(self, vcpu: AnyVcpu, guest: Guest, apic: Lapic, interrupts: Interrupts) -> None:
        self._vcpu = vcpu
        self._guest = guest
        self._apic = apic
        self._interrupts = interrupts
        self.task_priority = TaskPriority(vcpu, guest, apic)

    def answers(self, exit: Asked) -> bool:
        """The access is the kernel's; only this vCPU's own thread moves its APIC."""
        chips = self._interrupts.chips
        if isinstance(exit, MsrExit):
            return not exit.msr_reason and exit.index in APIC_MSRS
        if isinstance(exit, HypercallExit):
            return False
        if isinstance(exit, IoExit):
            return chips is not None and chips.answers_port(exit.port)
        return self._apic.answers(exit.phys_addr) or (chips is not None and chips.answers_page(exit.phys_addr))

    async def answered(self, cpu: Cpu, exit: Exit) -> Exit | None:
        """What is left of an exit of ``cpu``, this vCPU, once the devices have answered; None: the guest can go on."""
        while isinstance(exit, Asked) and self.answers(exit):
            reply = await self.answer(exit)
            further = await self._guest.complete(cpu, exit, reply)
            if further is None:
                return None
            exit = further
        return None if isinstance(exit, OWN) else exit

    async def answer(self, exit: Asked) -> bytes:
        """Perform it; the device's answer to a read."""
        if isinstance(exit, MsrExit):
            return await self.msr(exit)
        if isinstance(exit, IoExit):
            return await self._port(exit)
        assert isinstance(exit, MmioExit)
        return await (self._page(exit) if self._apic.answers(exit.phys_addr) else self._ioapic(exit))

    async def _page(self, exit: MmioExit) -> bytes:
        arch = self._vcpu.arch
        now = await self._interrupts.clock.now() if self._apic.is_timed(exit.phys_addr) else 0
        await self.task_priority.accessed(exit)
        if not exit.is_write:
            return await arch.read_apic(exit.phys_addr, exit.len, now)
        await self._follow(await arch.write_apic(exit.phys_addr, exit.data, now))
        return b""

    async def _follow(self, effect: Effect) -> None:
        """What a write to the APIC has led to."""
        await self._interrupts.affect(self._vcpu, effect)
        if effect.timed:
            await self._interrupts.start_timer(self._vcpu)
        self._guest.set_task_priority(self._apic.task_priority)

    async def _ioapic(self, exit: MmioExit) -> bytes:
        chips = self._interrupts.chips
        assert chips is not None
        if not exit.is_write:
            return await chips.read_ioapic(exit.phys_addr, exit.len)
        await self._interrupts.happen(await chips.write_ioapic(exit.phys_addr, exit.data))
        return b""

    async def _port(self, exit: IoExit) -> bytes:
        """Element by element: a string instruction asks for several at once."""
        chips = self._interrupts.chips
        assert chips is not None
        now = await self._interrupts.clock.now()
        if exit.direction == "in":
            return b"".join([await chips.read_port(exit.port, exit.size, now) for _ in range(exit.count)])
        for at in range(0, len(exit.data), exit.size):
            due = await chips.write_port(exit.port, exit.data[at : at + exit.size], now)
            await self._interrupts.clock.set_timer(PIT_TIMER, due)
        await self._interrupts.happen(Raised())
        return b""

    async def msr(self, exit: MsrExit, *, host: bool = False) -> bytes:
        """RDMSR or WRMSR, or with ``host`` what KVM_GET_MSRS and KVM_SET_MSRS ask for; the answer of an ``MsrExit``."""
        if exit.index == APIC_BASE:
            return await self._base(exit, host=host)
        if exit.index == TSC_DEADLINE:
            return await self._deadline(exit)
        arch, now = self._vcpu.arch, await self._interrupts.clock.now()
        if not exit.is_write:
            value = await arch.read_apic_msr(exit.index, now)
            return REFUSED if value is None else b"\0" + value.to_bytes(8, "little")
        effect = await arch.write_apic_msr(exit.index, exit.value, now)
        if effect is None:
            return REFUSED
        await self._follow(effect)
        return DONE

    async def _base(self, exit: MsrExit, *, host: bool) -> bytes:
        if not exit.is_write:
            return b"\0" + self._apic.base.to_bytes(8, "little")
        try:
            self._apic.check_base(exit.value, host=host)
            self._guest.set_special_registers({"apic_base": exit.value})
        except (RefusedError, KvmError):  # the mode, or bits that the CPU has not
            return REFUSED
        await self._vcpu.arch.set_apic_base(exit.value)
        return DONE

    async def _deadline(self, exit: MsrExit) -> bytes:
        if not exit.is_write:
            return b"\0" + self._apic.tsc_deadline.to_bytes(8, "little")
        now = await self._interrupts.clock.now()
        await self._vcpu.arch.set_tsc_deadline(exit.value, now + exit.ns_ahead)
        await self._interrupts.start_timer(self._vcpu)
        return DONE
