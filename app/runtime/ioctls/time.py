"""ioctls about time: kvmclock, the rates and offsets of vCPUs' time-stamp counters."""

from __future__ import annotations

import errno

from kickstand.core.arch.kvmclock import CLOCK_FLAGS, ClockData
from kickstand.core.errors import KvmError
from kickstand.core.uapi import Fd
from kickstand.runtime.calls.arguments import Argument
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.ioctls.model import CpuModel

TSC_CTRL, TSC_OFFSET = 0, 0  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
_WORD = 8
_MASK32 = 0xFFFF_FFFF
_MASK64 = (1 << 64) - 1


def _attribute(given: Argument) -> tuple[int, int]:
    return given["group"], given["attr"]


def _attribute_value(given: Argument) -> tuple[int, int, int]:
    return given["group"], given["attr"], int.from_bytes(given.memory.read(given["addr"], _WORD), "little")


def _fill_attribute(value: int, given: Argument) -> None:
    # An offset is a u64 that wraps: a counter that starts at zero on a host that has run for a while lies behind it.
    given.memory.write(given["addr"], (value & _MASK64).to_bytes(_WORD, "little"))


def _clock(given: Argument) -> tuple[ClockData]:
    return (ClockData(given["clock"], given["flags"], given["realtime"], given["host_tsc"]),)


class TimeIoctls(CpuModel):
    """What a machine has of them. ENOTTY for a vCPU's: its engine has no such counter."""

    @ioctl("KVM_GET_CLOCK", gives=lambda clock: {name: getattr(clock, name) for name in ClockData.__slots__})
    async def get_clock(self) -> ClockData:
        """KVM_GET_CLOCK: kvmclock, the time of day and the host's counter at one moment."""
        self._check_alive("KVM_GET_CLOCK")
        return self.vm.arch.clock.get()

    @ioctl("KVM_SET_CLOCK", durable=True, recorded=True, takes=_clock)
    async def set_clock(self, data: ClockData) -> None:
        """KVM_SET_CLOCK; with KVM_CLOCK_REALTIME it goes on by what has passed since then.

        EINVAL: unknown flags. What KVM_GET_CLOCK has said can be set.
        """
        self._check_alive("KVM_SET_CLOCK")
        if data.flags & ~CLOCK_FLAGS:
            raise KvmError(errno.EINVAL, "KVM_SET_CLOCK", f"flags {data.flags:#x} are not known", field="flags")
        self.vm.arch.clock.set(data)

    @ioctl("KVM_SET_TSC_KHZ", fd=Fd.VM, durable=True, recorded=True, takes=lambda argument: (argument.number,))
    async def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ of vCPUs to come; 0: the host's."""
        self._check_alive("KVM_SET_TSC_KHZ")
        clock = self.vm.arch.clock
        clock.default_khz = khz & _MASK32 or clock.source.khz

    @ioctl("KVM_GET_TSC_KHZ", fd=Fd.VM, gives=int)
    async def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ of vCPUs to come."""
        self._check_alive("KVM_GET_TSC_KHZ")
        return self.vm.arch.clock.default_khz

    @ioctl("KVM_SET_TSC_KHZ", fd=Fd.VCPU, durable=True, recorded=True, takes=lambda argument: (argument.number,))
    async def set_vcpu_tsc_khz(self, vcpu_id: int, khz: int) -> None:
        """KVM_SET_TSC_KHZ of a vCPU: its counter goes on at that rate; 0: the host's."""
        guest = self._modelled(vcpu_id, "KVM_SET_TSC_KHZ")
        rate = khz & _MASK32 or self.vm.arch.clock.source.khz
        await self._of(vcpu_id, lambda: guest.counter.set_khz(rate))

    @ioctl("KVM_GET_TSC_KHZ", fd=Fd.VCPU, gives=int)
    async def get_vcpu_tsc_khz(self, vcpu_id: int) -> int:
        """KVM_GET_TSC_KHZ of a vCPU."""
        guest = self._modelled(vcpu_id, "KVM_GET_TSC_KHZ")
        return await self._of(vcpu_id, lambda: guest.counter.khz)

    @ioctl("KVM_KVMCLOCK_CTRL", durable=True, recorded=True)
    async def kvmclock_ctrl(self, vcpu_id: int) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest in its page that it stood. EINVAL: it has no such page."""
        guest = self._modelled(vcpu_id, "KVM_KVMCLOCK_CTRL")
        if not await self._of(vcpu_id, guest.tell_paused):
            raise KvmError(errno.EINVAL, "KVM_KVMCLOCK_CTRL", "the guest has not enabled kvmclock")

    # -- attributes ------------------------------------------------------------------------------------------

    def _check_attribute(self, ioctl: str, group: int, attribute: int) -> None:
        if (group, attribute) != (TSC_CTRL, TSC_OFFSET):
            raise KvmError(errno.ENXIO, ioctl, f"there is no attribute {attribute} in group {group}", field="attr")

    @ioctl("KVM_HAS_DEVICE_ATTR", takes=_attribute)
    async def has_vcpu_attribute(self, vcpu_id: int, group: int, attribute: int) -> None:
        """KVM_HAS_DEVICE_ATTR of a vCPU. ENXIO: no such attribute."""
        self._modelled(vcpu_id, "KVM_HAS_DEVICE_ATTR")
        self._check_attribute("KVM_HAS_DEVICE_ATTR", group, attribute)

    @ioctl("KVM_GET_DEVICE_ATTR", takes=_attribute, fills=_fill_attribute)
    async def get_vcpu_attribute(self, vcpu_id: int, group: int, attribute: int) -> int:
        """KVM_GET_DEVICE_ATTR of a vCPU: the offset of its counter. ENXIO: no such attribute."""
        guest = self._modelled(vcpu_id, "KVM_GET_DEVICE_ATTR")
        self._check_attribute("KVM_GET_DEVICE_ATTR", group, attribute)
        return await self._of(vcpu_id, lambda: guest.counter.offset)

    @ioctl("KVM_SET_DEVICE_ATTR", durable=True, recorded=True, takes=_attribute_value)
    async def set_vcpu_attribute(self, vcpu_id: int, group: int, attribute: int, value: int) -> None:
        """KVM_SET_DEVICE_ATTR of a vCPU: the offset of its counter. ENXIO: no such attribute."""
        guest = self._modelled(vcpu_id, "KVM_SET_DEVICE_ATTR")
        self._check_attribute("KVM_SET_DEVICE_ATTR", group, attribute)
        await self._of(vcpu_id, lambda: guest.counter.set_offset(value))
