"""How an interrupt gets from a line, a message or a timer to the vCPUs, and the ioctls of the VM that concern it.

The controllers (``core.arch.irq``) say what shall happen; here it is done: a vCPU's APIC notes it, the vCPU is asked to
look, and woken or interrupted (``kvm_irq_delivery_to_apic`` in ``irq_comm.c``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from kickstand.core.arch.irq.chips import RESAMPLE, Chips, Raised
from kickstand.core.arch.irq.clock import Clock
from kickstand.core.arch.irq.lapic import Effect
from kickstand.core.arch.irq.message import Delivery, Message
from kickstand.core.arch.irq.routing import ChipId, MsiRoute, Route, check_route, table
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.errors import KvmError
from kickstand.core.guest import Share
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.shared.requests import Request
from kickstand.core.trace import Tracepoint, Tracer

PIT_TIMER = -1  # the clock's number for the 8254; a local APIC's timer has the vCPU's id
CHIP_BYTES = 512  # of ``kvm_irqchip.chip``
VALID_PIT_FLAGS = 1


class Owner(Protocol):
    """What they use of a VM."""

    arch: KvmArch
    vcpus: dict[int, AnyVcpu]
    share: Share
    trace: Tracer

    async def online_vcpus(self) -> tuple[AnyVcpu, ...]: ...

    async def check_alive(self, ioctl: str) -> None: ...


class Interrupts:
    """What a VM has of interrupts. ``chips`` is None until there is an irqchip in the kernel."""

    def __init__(self, vm: Owner, clock: Clock) -> None:
        self._vm = vm
        self._clock = clock
        self._tell: dict[int, Callable[[], None]] = {}
        self.chips: Chips | None = None

    @property
    def clock(self) -> Clock:
        """What the timers go by."""
        return self._clock

    def create(self, *, split: bool) -> None:
        """The controllers come into being: all of them, or with ``split`` the local APICs alone."""
        self.chips = self._vm.share(Chips(split=split, arch=self._vm.arch))
        self._clock = self._vm.share(self._clock)

    async def _needed(self, ioctl: str, code: int = errno.ENXIO, *, whole: bool = False) -> Chips:
        """The controllers. EIO: the VM is dead; ``code``: there are none in the kernel, or not ``whole``."""
        await self._vm.check_alive(ioctl)
        if self.chips is None or (whole and self.chips.split):
            raise KvmError(code, ioctl, "there is no in-kernel irqchip")
        return self.chips

    # -- delivery ----------------------------------------------------------------------------------------

    async def send(self, message: Message) -> int:
        """``kvm_irq_delivery_to_apic``: how many accepted it; 0 also if it names nobody, as with KVM's map of APICs."""
        vcpus = await self._vm.online_vcpus()
        if message.to_lowest_priority:
            if message.is_physical_broadcast:
                message = replace(message, delivery=Delivery.FIXED, redirection_hint=False)
            else:
                return await self._send_to_one(vcpus, message)
        accepted = 0
        for vcpu in vcpus:
            if await vcpu.arch.is_named(message):
                accepted += await self._arrive(vcpu, message)
        return accepted

    async def _send_to_one(self, vcpus: Iterable[AnyVcpu], message: Message) -> int:
        """Lowest priority as KVM arbitrates it: the vector chooses among those named (``vector_hashing``)."""
        candidates = [vcpu for vcpu in vcpus if await vcpu.arch.is_candidate(message)]
        if not candidates:
            return 0
        return int(await self._arrive(candidates[message.vector % len(candidates)], message))

    async def _arrive(self, vcpu: AnyVcpu, message: Message) -> bool:
        if not await vcpu.arch.accept(message):
            return False
        await self._look(vcpu, Request.NMI if message.delivery is Delivery.NMI else Request.EVENT)
        return True

    async def _look(self, vcpu: AnyVcpu, request: Request = Request.EVENT) -> None:
        """Make a vCPU look at its events: wake it, or take it out of guest mode."""
        await vcpu.make_request(request)
        await vcpu.kick()

    async def happen(self, raised: Raised) -> int:
        """Make happen what a controller asks for; its status."""
        for message in raised.messages:
            accepted = await self.send(message)
            if not accepted and message.level_triggered and message.pin is not None and self.chips is not None:
                await self.chips.refused(message.pin)
        await self._show_extint()
        await self._resample()
        return raised.status

    async def _show_extint(self) -> None:
        """The wire from the 8259 pair: every CPU sees it, those that take interrupts from it look."""
        if self.chips is None or (high := await self.chips.extint_changed()) is None:
            return
        for vcpu in await self._vm.online_vcpus():
            if await vcpu.arch.set_extint(high):
                await self._look(vcpu)

    async def acknowledge(self, vcpu: AnyVcpu, *, over: bool) -> int | None:
        """``kvm_cpu_get_extint``: the vector that the 8259 pair, or userspace's, has for a CPU that takes it."""
        external = await vcpu.arch.take_external()
        if external is not None or self.chips is None or self.chips.split:
            return external
        vector = await self.chips.acknowledge(over=over)
        await self._show_extint()
        await self._resample()
        return vector

    async def affect(self, vcpu: AnyVcpu, effect: Effect) -> None:
        """Make happen what a write to a vCPU's APIC asks for."""
        if effect.message is not None:
            await self.send(effect.message)
        if effect.ended is None or self.chips is None:
            return
        if self.chips.split:
            await self._tell_userspace_ioapic(vcpu, effect.ended, effect.level_triggered)
        elif effect.level_triggered or self._tell:
            await self.happen(await self.chips.ended(effect.ended, effect.level_triggered))

    async def _tell_userspace_ioapic(self, vcpu: AnyVcpu, vector: int, level_triggered: bool) -> None:
        """``kvm_ioapic_send_eoi``: its pins that have the vector and may have sent it to this vCPU."""
        assert self.chips is not None
        messages = await self.chips.exits_for(vector)
        for message in messages:
            if level_triggered or await vcpu.arch.is_named(message):
                await vcpu.arch.queue_eoi_exit(vector)
                await vcpu.make_request(Request.IOAPIC_EOI_EXIT)
                return

    # -- lines that are resampled ------------------------------------------------------------------------

    async def resample(self, gsi: int, tell: Callable[[], None] | None) -> None:
        """Irqfd with resample: ``tell`` is called when the guest has ended the line's interrupt; None: no more.

        EINVAL: the controllers with pins are not in the kernel.
        """
        chips = await self._needed("KVM_IRQFD", errno.EINVAL, whole=True)
        if tell is None:
            self._tell.pop(gsi, None)
        else:
            self._tell[gsi] = tell
        await self.happen(await chips.resample(gsi, tell is not None))

    async def hold(self, gsi: int) -> None:
        """Such a line is high until the guest has ended its interrupt."""
        chips = await self._needed("KVM_IRQFD", errno.EINVAL, whole=True)
        await self.happen(await chips.set_gsi(gsi, True, RESAMPLE))

    async def _resample(self) -> None:
        if self._tell and self.chips is not None:
            for gsi in await self.chips.take_acked():
                tell = self._tell.get(gsi)
                if tell is not None:
                    tell()

    # -- timers ------------------------------------------------------------------------------------------

    async def start_timer(self, vcpu: AnyVcpu) -> None:
        """Tell the clock when a vCPU's APIC timer is due."""
        await self._clock.set_timer(vcpu.id, await vcpu.arch.timer_expires())

    async def start_pit(self) -> None:
        """Tell the clock when the 8254 is due."""
        if self.chips is not None:
            await self._clock.set_timer(PIT_TIMER, await self.chips.pit_due())

    async def timer_fired(self, number: int) -> None:
        """The clock has come to a timer."""
        now = await self._clock.now()
        if number == PIT_TIMER:
            await self._pit_fired(now)
            return
        vcpu = self._vm.vcpus.get(number)
        if vcpu is not None:
            interrupts, due = await vcpu.arch.timer_fired(now)
            await self._clock.set_timer(number, due)
            if interrupts:
                await self._look(vcpu)

    async def _pit_fired(self, now: int) -> None:
        if self.chips is not None:
            raised, due = await self.chips.pit_fired(now)
            await self._clock.set_timer(PIT_TIMER, due)
            await self.happen(raised)

    # -- ioctls ------------------------------------------------------------------------------------------

    async def irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE: 0 if the interrupt met one that is pending, above 0 how many took it, -1 masked.

        ENXIO: no irqchip with pins in the kernel.
        """
        chips = await self._needed("KVM_IRQ_LINE")
        self._vm.trace(Tracepoint.KVM_SET_IRQ, None, {"gsi": irq, "level": level})
        return await self.happen(await chips.set_gsi(irq, bool(level)))

    async def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: how many vCPUs took it. EINVAL: no irqchip, or unknown flags; EPERM: no 32-bit APIC id."""
        chips = await self._needed("KVM_SIGNAL_MSI", errno.EINVAL)
        route = MsiRoute(address, data)
        if flags & ~1:
            raise KvmError(errno.EINVAL, "KVM_SIGNAL_MSI", f"flags {flags:#x} mean nothing", field="flags")
        self._vm.trace(Tracepoint.KVM_MSI_SET_IRQ, None, {"address": address, "data": data})
        if self._vm.arch.x2apic_format and not route.is_wide:
            raise KvmError(errno.EPERM, "KVM_SIGNAL_MSI", "bits 32 to 39 of the address mean nothing", field="address")
        return await self.send(chips.message(route))

    async def set_gsi_routing(self, entries: Iterable[tuple[int, Route, int]]) -> None:
        """KVM_SET_GSI_ROUTING with (gsi, route, flags). EINVAL: no irqchip, or as ``routing``; nothing changes then."""
        chips = await self._needed("KVM_SET_GSI_ROUTING", errno.EINVAL)
        routes = list(entries)
        for gsi, route, flags in routes:
            check_route(gsi, route, flags, split=chips.split, wide=self._vm.arch.x2apic_format)
        await chips.set_routing(table((gsi, route) for gsi, route, _ in routes))

    async def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP: 512 bytes. ENXIO: no irqchip with pins in the kernel; EINVAL: no such chip."""
        chips = await self._needed("KVM_GET_IRQCHIP", whole=True)
        return (await chips.chip_state(_chip("KVM_GET_IRQCHIP", chip))).ljust(CHIP_BYTES, b"\0")

    async def set_irqchip(self, chip: int, state: bytes) -> None:
        """KVM_SET_IRQCHIP; errors as ``get_irqchip``."""
        chips = await self._needed("KVM_SET_IRQCHIP", whole=True)
        await self.happen(await chips.set_chip_state(_chip("KVM_SET_IRQCHIP", chip), state))

    async def create_pit(self, flags: int) -> None:
        """KVM_CREATE_PIT2. EEXIST: there is one; ENOENT: no irqchip with pins in the kernel."""
        chips = await self._needed("KVM_CREATE_PIT2", errno.ENOENT, whole=True)
        if not await chips.create_pit(flags & VALID_PIT_FLAGS):
            raise KvmError(errno.EEXIST, "KVM_CREATE_PIT2", "there is a PIT")

    async def get_pit(self) -> bytes:
        """KVM_GET_PIT2: 112 bytes. ENXIO: there is none."""
        await self._vm.check_alive("KVM_GET_PIT2")
        state = None if self.chips is None else await self.chips.pit_state()
        if state is None:
            raise KvmError(errno.ENXIO, "KVM_GET_PIT2", "there is no PIT")
        return state

    async def set_pit(self, state: bytes) -> None:
        """KVM_SET_PIT2. ENXIO: there is none."""
        await self.get_pit()
        assert self.chips is not None
        due = await self.chips.set_pit_state(state, await self._clock.now())
        await self._clock.set_timer(PIT_TIMER, due)


def _chip(ioctl: str, number: int) -> ChipId:
    if number not in ChipId.__members__.values():
        raise KvmError(errno.EINVAL, ioctl, f"there is no chip {number}", field="chip_id")
    return ChipId(number)
