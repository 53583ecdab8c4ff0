"""The interrupt controllers of the real kernel: every ioctl goes there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from kickstand.core.arch.irq.clock import Clock
from kickstand.core.arch.irq.routing import MsiRoute, Route, RouteType
from kickstand.core.uapi import (
    KVM_IRQ_LEVEL,
    KVM_IRQ_ROUTING,
    KVM_IRQ_ROUTING_ENTRY,
    KVM_IRQCHIP,
    KVM_MSI,
    KVM_PIT_CONFIG,
    KVM_PIT_STATE2,
)
from kickstand.core.wiring.interrupts import Interrupts, Owner
from kickstand.guests.kvm import device

LOW = 0xFFFF_FFFF


class DeviceInterrupts(Interrupts):
    """``fd`` is the VM's descriptor."""

    def __init__(self, fd: int, vm: Owner) -> None:
        super().__init__(vm, Clock())
        self._fd = fd

    async def irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS."""
        await self._vm.check_alive("KVM_IRQ_LINE")
        buffer = ctypes.create_string_buffer(KVM_IRQ_LEVEL.pack({"irq": irq, "level": level}), KVM_IRQ_LEVEL.size)
        device.ioctl(self._fd, "IRQ_LINE_STATUS", buffer)
        return int.from_bytes(buffer.raw[:4], "little", signed=True)

    async def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI."""
        await self._vm.check_alive("KVM_SIGNAL_MSI")
        value = {"address_lo": address & LOW, "address_hi": address >> 32, "data": data, "flags": flags}
        return device.write(self._fd, "SIGNAL_MSI", KVM_MSI, value)

    async def set_gsi_routing(self, entries: Iterable[tuple[int, Route, int]]) -> None:
        """KVM_SET_GSI_ROUTING."""
        await self._vm.check_alive("KVM_SET_GSI_ROUTING")
        packed = [_entry(*entry) for entry in entries]
        data = KVM_IRQ_ROUTING.pack({"nr": len(packed), "flags": 0}) + b"".join(packed)
        device.ioctl(self._fd, "SET_GSI_ROUTING", ctypes.create_string_buffer(data, len(data)))

    async def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP."""
        await self._vm.check_alive("KVM_GET_IRQCHIP")
        buffer = ctypes.create_string_buffer(KVM_IRQCHIP.pack({"chip_id": chip, "chip": bytes(512)}), KVM_IRQCHIP.size)
        device.ioctl(self._fd, "GET_IRQCHIP", buffer)
        return bytes(KVM_IRQCHIP.unpack(buffer.raw)["chip"])

    async def set_irqchip(self, chip: int, state: bytes) -> None:
        """KVM_SET_IRQCHIP."""
        await self._vm.check_alive("KVM_SET_IRQCHIP")
        device.write(self._fd, "SET_IRQCHIP", KVM_IRQCHIP, {"chip_id": chip, "chip": state})

    async def create_pit(self, flags: int) -> None:
        """KVM_CREATE_PIT2."""
        await self._vm.check_alive("KVM_CREATE_PIT2")
        device.write(self._fd, "CREATE_PIT2", KVM_PIT_CONFIG, {"flags": flags})

    async def get_pit(self) -> bytes:
        """KVM_GET_PIT2."""
        await self._vm.check_alive("KVM_GET_PIT2")
        return KVM_PIT_STATE2.pack(device.read(self._fd, "GET_PIT2", KVM_PIT_STATE2))

    async def set_pit(self, state: bytes) -> None:
        """KVM_SET_PIT2."""
        await self._vm.check_alive("KVM_SET_PIT2")
        device.write(self._fd, "SET_PIT2", KVM_PIT_STATE2, KVM_PIT_STATE2.unpack(state))


def _entry(gsi: int, route: Route, flags: int) -> bytes:
    if isinstance(route, MsiRoute):
        kind, words = RouteType.MSI, (route.address & LOW, route.address >> 32, route.data)
    else:
        kind, words = RouteType.IRQCHIP, (route.chip, route.pin, 0)
    target = b"".join(word.to_bytes(4, "little") for word in words).ljust(32, b"\0")
    return KVM_IRQ_ROUTING_ENTRY.pack({"gsi": gsi, "type": kind, "flags": flags, "u": target})
