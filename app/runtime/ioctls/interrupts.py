"""The ioctls of a machine that concern interrupt controllers."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Any

from kickstand.core.arch.irq.routing import MAX_ROUTES, ChipId, MsiRoute, PinRoute, Route, RouteType
from kickstand.core.errors import KvmError
from kickstand.core.uapi import KVM_IRQ_ROUTING, KVM_IRQ_ROUTING_ENTRY, KVM_IRQCHIP, KVM_PIT_STATE2
from kickstand.core.vcpu import Vcpu
from kickstand.runtime.calls.arguments import Argument
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver.clock import LoopClock, VirtualClock
from kickstand.runtime.observed import waits
from kickstand.runtime.vmm.process import Process
from kickstand.runtime.vmm.threads import Threads

Entry = tuple[int, Route, int]  # gsi, where it goes, flags


def _message(given: Argument) -> tuple[int, int, int]:
    return given["address_hi"] << 32 | given["address_lo"], given["data"], given["flags"]


def _chip(given: Argument) -> tuple[int, bytes]:
    """KVM_SET_IRQCHIP says by its number that it only fills in, and reads all the same."""
    fields = KVM_IRQCHIP.unpack(given.memory.read(given.number, KVM_IRQCHIP.size))
    return fields["chip_id"], fields["chip"]


def _routes(given: Argument) -> tuple[Sequence[Entry]]:
    """The header is followed by ``nr`` entries. EINVAL: too many, or flags."""
    if given["nr"] > MAX_ROUTES or given["flags"]:
        raise KvmError(errno.EINVAL, "KVM_SET_GSI_ROUTING", f"at most {MAX_ROUTES} entries, and no flags", field="nr")
    size = KVM_IRQ_ROUTING_ENTRY.size
    data = given.memory.read(given.number + KVM_IRQ_ROUTING.size, given["nr"] * size)
    return ([_route(data[at : at + size]) for at in range(0, len(data), size)],)


def _route(data: bytes) -> Entry:
    entry = KVM_IRQ_ROUTING_ENTRY.unpack(data)
    first, second, third, _ = struct.unpack_from("<4I", entry["u"])
    if entry["type"] == RouteType.MSI:
        return entry["gsi"], MsiRoute(second << 32 | first, third), entry["flags"]
    if entry["type"] != RouteType.IRQCHIP or first not in ChipId.__members__.values():
        raise KvmError(
            errno.EINVAL, "KVM_SET_GSI_ROUTING", f"nothing is routed like type {entry['type']}", field="type"
        )
    return entry["gsi"], PinRoute(ChipId(first), second), entry["flags"]


class InterruptIoctls(Process):
    """What a machine has of them."""

    threads: Threads
    clock: LoopClock | VirtualClock

    @ioctl("KVM_CREATE_IRQCHIP", durable=True, recorded=True)
    async def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP."""
        await self.call(self.vm.create_irqchip())

    @ioctl("KVM_IRQ_LINE", durable=True, recorded=True, takes=lambda line: (line["irq"], line["level"]))
    async def irq_line(self, irq: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        await self._irq_line(irq, level)

    @ioctl(
        "KVM_IRQ_LINE_STATUS",
        durable=True,
        recorded=True,
        takes=lambda line: (line["irq"], line["level"]),
        gives=lambda done: {"irq": done["status"] & 0xFFFF_FFFF, "level": done["level"]},
    )
    async def irq_line_status(self, irq: int, level: int) -> dict[str, int]:
        """KVM_IRQ_LINE_STATUS: ``status`` 0 if it met one that is pending, -1 if it is masked, else above 0."""
        return {"status": await self._irq_line(irq, level), "level": level}

    async def _irq_line(self, irq: int, level: int) -> int:
        status = await self.call(self.vm.irq_line(irq, level))
        self.threads.wake()
        return status

    async def resample_line(self, gsi: int, tell: Callable[[], None] | None) -> None:
        """Irqfd with resample: call ``tell`` whenever the guest has ended the line's interrupt; None: no more."""
        await self.call(self.vm.interrupts.resample(gsi, tell))

    async def hold_line(self, gsi: int) -> None:
        """Such a line is high until then."""
        await self.call(self.vm.interrupts.hold(gsi))

    @ioctl("KVM_SIGNAL_MSI", durable=True, recorded=True, takes=_message, gives=int)
    async def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: how many vCPUs took it."""
        return await self.call(self.vm.signal_msi(address, data, flags))

    @ioctl("KVM_SET_GSI_ROUTING", durable=True, recorded=True, takes=_routes)
    async def set_gsi_routing(self, entries: Sequence[Entry]) -> None:
        """KVM_SET_GSI_ROUTING: the whole table."""
        await self.call(self.vm.interrupts.set_gsi_routing(entries))

    @ioctl(
        "KVM_GET_IRQCHIP",
        recorded=True,
        takes=lambda given: (given["chip_id"],),
        gives=lambda state: {"chip_id": state[0], "chip": state[1]},
    )
    async def get_irqchip(self, chip_id: int) -> tuple[int, bytes]:
        """KVM_GET_IRQCHIP: the number, and 512 bytes of state."""
        return chip_id, await self.call(self.vm.interrupts.get_irqchip(chip_id))

    @ioctl("KVM_SET_IRQCHIP", durable=True, recorded=True, takes=_chip, gives=lambda _: 0)
    async def set_irqchip(self, chip_id: int, state: bytes) -> None:
        """KVM_SET_IRQCHIP."""
        await self.call(self.vm.interrupts.set_irqchip(chip_id, state))

    @ioctl("KVM_CREATE_PIT2", durable=True, recorded=True, takes=lambda config: (config["flags"],))
    async def create_pit(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2."""
        await self.call(self.vm.interrupts.create_pit(flags))

    @ioctl("KVM_GET_PIT2", recorded=True, gives=KVM_PIT_STATE2.unpack)
    async def get_pit(self) -> bytes:
        """KVM_GET_PIT2: 112 bytes."""
        return await self.call(self.vm.interrupts.get_pit())

    @ioctl("KVM_SET_PIT2", durable=True, recorded=True, takes=lambda pit: (KVM_PIT_STATE2.pack(pit.fields),))
    async def set_pit(self, state: bytes) -> None:
        """KVM_SET_PIT2."""
        await self.call(self.vm.interrupts.set_pit(state))

    @ioctl(
        "KVM_TPR_ACCESS_REPORTING",
        durable=True,
        recorded=True,
        takes=lambda control: (control["enabled"], control["flags"]),
        gives=dict,
    )
    async def report_tpr_access(self, vcpu_id: int, enabled: int, flags: int = 0) -> dict[str, int]:
        """KVM_TPR_ACCESS_REPORTING: leave with KVM_EXIT_TPR_ACCESS when the guest has accessed it. EINVAL: flags."""
        if flags:
            raise KvmError(errno.EINVAL, "KVM_TPR_ACCESS_REPORTING", f"flags {flags:#x} mean nothing", field="flags")
        await self.call(self.vcpu(vcpu_id).report_tpr_access(bool(enabled), self.thread().tid))
        return {"enabled": enabled, "flags": flags}

    @ioctl("KVM_SET_VAPIC_ADDR", durable=True, recorded=True, takes=lambda given: (given["vapic_addr"],))
    async def set_vapic_addr(self, vcpu_id: int, address: int) -> None:
        """KVM_SET_VAPIC_ADDR: the task priority is in guest memory too; 0: no more.

        EINVAL: no APIC in the kernel, or no memory there.
        """
        await self.call(self.vcpu(vcpu_id).set_vapic_addr(address, self.thread().tid))

    @ioctl("KVM_GET_LAPIC", recorded=True, gives=lambda page: {"regs": page})
    async def get_lapic(self, vcpu_id: int) -> bytes:
        """KVM_GET_LAPIC: 1,024 bytes; waits for KVM_RUN to end."""
        return await self.call(self.vcpu(vcpu_id).get_lapic(self.thread().tid))

    @ioctl("KVM_SET_LAPIC", durable=True, recorded=True, takes=lambda lapic: (lapic["regs"],))
    async def set_lapic(self, vcpu_id: int, page: bytes) -> None:
        """KVM_SET_LAPIC; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).set_lapic(page, self.thread().tid))
        self.threads.wake()

    def describe_interrupts(self, vcpu_id: int) -> dict[str, Any]:
        """What a vCPU has pending, and what would wake it. EOPNOTSUPP: the real kernel has it."""
        vcpu = self.vcpu(vcpu_id)
        if not isinstance(vcpu, Vcpu):
            raise KvmError(errno.EOPNOTSUPP, "interrupts", "what the real kernel has pending is not seen here")
        return waits.interrupts(vcpu, self.clock.time_now())
