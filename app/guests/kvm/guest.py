"""A vCPU's registers through the real kernel's ioctls. Executing instructions is the kernel's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from app.core.guest import Exit, IoExit, MmioExit, WindowExit
from app.core.uapi import KVM_REGS, KVM_SREGS
from app.guests.kvm import device

if TYPE_CHECKING:
    from app.core.vcpu import Vcpu
    from app.guests.kvm.thread import VcpuThread


class DeviceGuest:
    """The guest engine of a vCPU of the real kernel. Calls are made while the vCPU is not in KVM_RUN."""

    CACHES_TRANSLATIONS: ClassVar[bool] = False  # the kernel looks after its own

    def __init__(self, fd: int, thread: VcpuThread) -> None:
        self.fd = fd
        self.thread = thread

    def registers(self) -> dict[str, int]:
        """KVM_GET_REGS."""
        return device.read(self.fd, "GET_REGS", KVM_REGS)

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """KVM_GET_REGS, overlay, KVM_SET_REGS."""
        device.write(self.fd, "SET_REGS", KVM_REGS, {**self.registers(), **registers})

    def special_registers(self) -> dict[str, object]:
        """KVM_GET_SREGS."""
        return device.read(self.fd, "GET_SREGS", KVM_SREGS)

    def set_special_registers(self, changes: Mapping[str, object]) -> None:
        """KVM_GET_SREGS, overlay, within segments and tables too, KVM_SET_SREGS."""
        values: dict[str, Any] = dict(self.special_registers())
        for name, change in changes.items():
            if isinstance(change, Mapping):
                change = {**values[name], **change}  # noqa: PLW2901
            values[name] = change
        device.write(self.fd, "SET_SREGS", KVM_SREGS, values)

    def kick(self) -> None:
        """A signal to the thread that is in KVM_RUN."""
        self.thread.interrupt()

    def close(self) -> None:
        """The vCPU closes its descriptor itself."""

    async def enter(self, vcpu: Vcpu) -> Exit:
        self._kernels_business()

    async def complete(self, vcpu: Vcpu, pending: IoExit | MmioExit, reply: bytes | None) -> Exit | None:
        self._kernels_business()

    def interrupts_allowed(self) -> bool:
        self._kernels_business()

    def interrupt(self, vector: int) -> None:
        self._kernels_business()

    def nmi(self) -> None:
        self._kernels_business()

    def start_at(self, vector: int) -> None:
        self._kernels_business()

    def window_exit(self) -> WindowExit | None:
        self._kernels_business()

    def _kernels_business(self) -> NoReturn:
        raise RuntimeError("the real kernel does this inside KVM_RUN")
