"""Ioctls of a vCPU descriptor that bring events, or set what events go through: mp_state, interrupts, NMI, the APIC."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from kickstand.core.errors import KvmError
from kickstand.core.guest import Executes, Guest
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import MsrExit
from kickstand.core.shared.requests import Request
from kickstand.core.uapi import PAGE_SIZE, MpState
from kickstand.core.wiring.in_kernel import REFUSED, TSC_DEADLINE, InKernel

VECTORS = 256
SETTABLE_MP_STATES = (
    MpState.RUNNABLE,
    MpState.UNINITIALIZED,
    MpState.INIT_RECEIVED,
    MpState.HALTED,
    MpState.SIPI_RECEIVED,
    MpState.AP_RESET_HOLD,
)


class EventIoctls(AnyVcpu):
    """Each takes the vCPU's mutex, so it waits for a KVM_RUN that goes on."""

    in_kernel: InKernel | None

    @property
    @abstractmethod
    def guest(self) -> Guest: ...

    async def get_mp_state(self) -> MpState:
        """KVM_GET_MP_STATE: what INIT and SIPI have made of it, unless the vCPU's own thread will look at these."""
        if self.mutex.owner is None:
            await self.accept_init_sipi()
        return await self.arch.get_mp_state()

    async def set_mp_state(self, mp_state: MpState, tid: str) -> None:
        """KVM_SET_MP_STATE. EINVAL: a state x86 does not know, or any but RUNNABLE without an in-kernel irqchip."""
        await self.vm.check_alive("KVM_SET_MP_STATE")
        if mp_state not in SETTABLE_MP_STATES or (mp_state is not MpState.RUNNABLE and not self.vm.irqchip):
            raise KvmError(errno.EINVAL, "KVM_SET_MP_STATE", f"{mp_state.name} cannot be set here", field="mp_state")
        await self.mutex.lock(tid)
        try:
            await self.arch.set_mp_state(mp_state)
            await self.make_request(Request.EVENT)
        finally:
            await self.mutex.unlock()

    async def interrupt(self, vector: int, tid: str) -> None:
        """KVM_INTERRUPT. EINVAL: ``vector`` not below 256; ENXIO: the irqchip is in the kernel.

        EEXIST: of the irqchip the APICs alone are, and another vector from userspace waits.
        """
        await self.vm.check_alive("KVM_INTERRUPT")
        if not 0 <= vector < VECTORS:
            raise KvmError(errno.EINVAL, "KVM_INTERRUPT", f"vector {vector} is not below {VECTORS}", field="vector")
        chips = self.vm.interrupts.chips
        if chips is None:
            await self.with_mutex(lambda: self._inject(vector), tid)
        elif not chips.split:
            raise KvmError(errno.ENXIO, "KVM_INTERRUPT", "the interrupt controller is in the kernel")
        elif not await self.arch.queue_external(vector):
            raise KvmError(errno.EEXIST, "KVM_INTERRUPT", "an interrupt from userspace waits already")
        else:
            await self.make_request(Request.EVENT)

    def _inject(self, vector: int) -> None:
        self.guest.interrupt(vector)
        if self.arch.mp_state is MpState.HALTED:  # in the guest: KVM_CAP_X86_DISABLE_EXITS
            self.arch.mp_state = MpState.RUNNABLE

    async def set_special_registers(self, changes: Mapping[str, object], tid: str) -> None:
        """KVM_SET_SREGS; the APIC moves with APIC_BASE."""
        await super().set_special_registers(changes, tid)
        base = changes.get("apic_base")
        if self.apic is not None and isinstance(base, int):
            await self.arch.set_apic_base(base)

    async def read_apic_msrs(self, indices: Sequence[int]) -> list[int]:
        values: list[int] = []
        for index in indices:
            answer = await self.in_kernel.msr(MsrExit(index, is_write=False), host=True) if self.in_kernel else REFUSED
            if answer[0]:
                break
            values.append(int.from_bytes(answer[1:], "little"))
        return values

    async def write_apic_msrs(self, entries: Sequence[tuple[int, int]]) -> int:
        for taken, (index, value) in enumerate(entries):
            ahead = self.guest.ns_until(value) if index == TSC_DEADLINE and isinstance(self.guest, Executes) else 0
            exit = MsrExit(index, is_write=True, value=value, ns_ahead=ahead)
            if self.in_kernel is None or (await self.in_kernel.msr(exit, host=True))[0]:
                return taken
        return len(entries)

    async def get_lapic(self, tid: str) -> bytes:
        """KVM_GET_LAPIC: 1,024 bytes. EINVAL: no in-kernel irqchip."""
        await self._with_lapic("KVM_GET_LAPIC", tid)
        try:
            return await self.arch.apic_registers(await self.vm.interrupts.clock.now())
        finally:
            await self.mutex.unlock()

    async def set_lapic(self, page: bytes, tid: str) -> None:
        """KVM_SET_LAPIC. EINVAL: no in-kernel irqchip, or with 32-bit ids another id than the vCPU's."""
        await self._with_lapic("KVM_SET_LAPIC", tid)
        try:
            if not await self.arch.set_apic_registers(page, await self.vm.interrupts.clock.now()):
                raise KvmError(errno.EINVAL, "KVM_SET_LAPIC", f"the APIC of vcpu {self.id} has its id", field="regs")
            await self.vm.interrupts.start_timer(self)
            await self.make_request(Request.EVENT)
        finally:
            await self.mutex.unlock()

    async def report_tpr_access(self, enabled: bool, tid: str) -> None:
        """KVM_TPR_ACCESS_REPORTING; nothing happens without an in-kernel irqchip."""
        await self.vm.check_alive("KVM_TPR_ACCESS_REPORTING")
        if self.apic is not None:
            await self._with_lapic("KVM_TPR_ACCESS_REPORTING", tid)
            self.apic.reports_tpr = enabled
            await self.mutex.unlock()

    async def set_vapic_addr(self, address: int, tid: str) -> None:
        """KVM_SET_VAPIC_ADDR; 0: none. EINVAL: no in-kernel irqchip, or no memory there."""
        name = "KVM_SET_VAPIC_ADDR"
        await self._with_lapic(name, tid)
        try:
            assert self.apic is not None
            slot = await self.vm.memslots.lookup(address) if address else None
            if address and (slot is None or address & PAGE_SIZE - 1 > PAGE_SIZE - 4):
                raise KvmError(errno.EINVAL, name, f"there is no word of memory at {address:#x}", field="vapic_addr")
            self.apic.vapic = address or None
        finally:
            await self.mutex.unlock()

    async def _with_lapic(self, ioctl: str, tid: str) -> None:
        """Take the vCPU's mutex for an ioctl about its APIC."""
        await self.vm.check_alive(ioctl)
        if self.apic is None:
            raise KvmError(errno.EINVAL, ioctl, "there is no in-kernel irqchip")
        await self.mutex.lock(tid)

    async def inject_nmi(self, tid: str) -> None:
        """KVM_NMI."""
        await self.vm.check_alive("KVM_NMI")
        await self.mutex.lock(tid)
        try:
            await self.arch.queue_nmi()
            await self.make_request(Request.NMI)
        finally:
            await self.mutex.unlock()

    async def accept_init_sipi(self) -> None:
        """INIT and SIPI change the mp_state; INIT resets the guest, a SIPI says where it starts."""
        start = await self.arch.accept_init_sipi(boot=self.is_boot_vcpu)
        if start.reset:
            self.guest.reset()
        if start.vector is not None:
            self.guest.start_at(start.vector)
