"""A vCPU's registers through the real kernel's ioctls. Executing instructions is the kernel's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kickstand.core.uapi import KVM_REGS, KVM_SREGS
from kickstand.guests.kvm import device
from kickstand.guests.kvm.thread import VcpuThread


class DeviceRegisters:
    """The registers of a vCPU of the real kernel. Calls are made while the vCPU is not in KVM_RUN."""

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
