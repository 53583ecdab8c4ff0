"""ioctls that save and restore a vCPU's state beside its registers: FPU, XSAVE area, debug registers, events."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.uapi import KVM_SREGS2
from kickstand.core.wiring.vcpu_events import SET_EVENTS, get_events, set_events
from kickstand.runtime.calls.arguments import Argument
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.ioctls.model import CpuModel

_FPU, _XSAVE, _DEBUGREGS, _XCRS = 416, 4096, 128, 392
_XCR0 = Struct("<2I2IQ")  # nr, flags, and the first of sixteen (xcr, reserved, value)
_XCR = Struct("<2IQ")
_X87 = 1
_PDPTRS_VALID = 1
_INVALID = (1 << 64) - 1


def _bytes(length: int) -> Any:
    return lambda argument: (argument.memory.read(argument.number, length),)


def _fill(data: bytes, argument: Argument) -> None:
    argument.memory.write(argument.number, data)


def _nothing(_result: object) -> int:
    return 0


class StateIoctls(CpuModel):
    """Each set waits for KVM_RUN to end, as each get does. ENOTTY: an engine that has no such state."""

    @ioctl("KVM_GET_FPU", gives=_nothing, fills=_fill)
    async def get_fpu(self, vcpu_id: int) -> bytes:
        """KVM_GET_FPU: ``struct kvm_fpu``."""
        guest = self._modelled(vcpu_id, "KVM_GET_FPU")
        return await self._of(vcpu_id, lambda: guest.structures.fpu)

    @ioctl("KVM_SET_FPU", durable=True, recorded=True, takes=_bytes(_FPU))
    async def set_fpu(self, vcpu_id: int, data: bytes) -> None:
        """KVM_SET_FPU."""
        await self._put(vcpu_id, "KVM_SET_FPU", "fpu", data)

    @ioctl("KVM_GET_XSAVE", gives=_nothing, fills=_fill)
    async def get_xsave(self, vcpu_id: int) -> bytes:
        """KVM_GET_XSAVE: the legacy area and the header of ``struct kvm_xsave``."""
        guest = self._modelled(vcpu_id, "KVM_GET_XSAVE")
        return await self._of(vcpu_id, lambda: guest.structures.xsave)

    @ioctl("KVM_GET_XSAVE2", gives=_nothing, fills=_fill)
    async def get_xsave2(self, vcpu_id: int) -> bytes:
        """KVM_GET_XSAVE2: there is nothing beyond 4096 bytes."""
        return await self.get_xsave(vcpu_id)

    @ioctl("KVM_SET_XSAVE", durable=True, recorded=True, takes=_bytes(_XSAVE))
    async def set_xsave(self, vcpu_id: int, data: bytes) -> None:
        """KVM_SET_XSAVE. EINVAL: components or MXCSR bits that there are not."""
        await self._put(vcpu_id, "KVM_SET_XSAVE", "xsave", data)

    @ioctl("KVM_GET_XCRS", gives=_nothing, fills=_fill)
    async def get_xcrs(self, vcpu_id: int) -> bytes:
        """KVM_GET_XCRS: XCR0 has the x87's bit and no other."""
        self._modelled(vcpu_id, "KVM_GET_XCRS")
        return _XCR0.pack(1, 0, 0, 0, _X87).ljust(_XCRS, b"\0")

    @ioctl("KVM_SET_XCRS", takes=_bytes(_XCRS))
    async def set_xcrs(self, vcpu_id: int, data: bytes) -> None:
        """KVM_SET_XCRS. EINVAL: more than 16, flags, or a value of XCR0 that it has not."""
        self._modelled(vcpu_id, "KVM_SET_XCRS")
        count, flags, *_ = _XCR0.unpack_from(data)
        if count > 16 or flags:  # noqa: PLR2004 - the size of the array
            raise KvmError(errno.EINVAL, "KVM_SET_XCRS", f"{count} registers with flags {flags:#x}", field="nr_xcrs")
        entries = (_XCR.unpack_from(data, at) for at in range(8, 8 + 16 * count, 16))
        value = next((value for number, _, value in entries if number == 0), _X87)  # what comes after it nobody sees
        if value != _X87:
            raise KvmError(errno.EINVAL, "KVM_SET_XCRS", f"XCR0 cannot be {value:#x}", field="xcrs")

    @ioctl("KVM_GET_DEBUGREGS", gives=_nothing, fills=_fill)
    async def get_debugregs(self, vcpu_id: int) -> bytes:
        """KVM_GET_DEBUGREGS."""
        guest = self._modelled(vcpu_id, "KVM_GET_DEBUGREGS")
        return await self._of(vcpu_id, lambda: guest.structures.debug_registers)

    @ioctl("KVM_SET_DEBUGREGS", durable=True, recorded=True, takes=_bytes(_DEBUGREGS))
    async def set_debugregs(self, vcpu_id: int, data: bytes) -> None:
        """KVM_SET_DEBUGREGS. EINVAL: flags, or DR6 or DR7 wider than 32 bits."""
        await self._put(vcpu_id, "KVM_SET_DEBUGREGS", "debug_registers", data)

    @ioctl(
        "KVM_SET_GUEST_DEBUG", durable=True, recorded=True, takes=lambda given: (given["control"], given["debugreg"])
    )
    async def set_guest_debug(self, vcpu_id: int, control: int, registers: Sequence[int]) -> None:
        """KVM_SET_GUEST_DEBUG: single steps and breakpoints leave with KVM_EXIT_DEBUG.

        EBUSY: an exception is to be injected, and one waits already.
        """
        guest = self._modelled(vcpu_id, "KVM_SET_GUEST_DEBUG")
        await self._of(vcpu_id, lambda: guest.set_guest_debug(control, registers))

    async def _put(self, vcpu_id: int, ioctl: str, name: str, value: object) -> None:
        guest = self._modelled(vcpu_id, ioctl)
        await self._of(vcpu_id, lambda: setattr(guest.structures, name, value))

    @ioctl("KVM_GET_VCPU_EVENTS", gives=dict)
    async def get_vcpu_events(self, vcpu_id: int) -> Mapping[str, Any]:
        """KVM_GET_VCPU_EVENTS."""
        guest, vcpu = self._modelled(vcpu_id, "KVM_GET_VCPU_EVENTS"), self.vcpu(vcpu_id)
        return await self._of(vcpu_id, lambda: get_events(vcpu, guest))

    @ioctl(SET_EVENTS, durable=True, recorded=True, takes=lambda events: (events.fields,))
    async def set_vcpu_events(self, vcpu_id: int, events: Mapping[str, Any]) -> None:
        """KVM_SET_VCPU_EVENTS. EINVAL: unknown flags, a vector that is no exception's, or system management mode."""
        guest, vcpu = self._modelled(vcpu_id, SET_EVENTS), self.vcpu(vcpu_id)
        await self._of(vcpu_id, lambda: set_events(vcpu, guest, events))

    @ioctl("KVM_GET_SREGS2", gives=dict)
    async def get_sregs2(self, vcpu_id: int) -> Mapping[str, Any]:
        """KVM_GET_SREGS2: as KVM_GET_SREGS; the four entries of PAE paging are read from memory when they are used."""
        self._modelled(vcpu_id, "KVM_GET_SREGS2")
        values = await self._of(vcpu_id, self.vcpu(vcpu_id).guest.special_registers)
        return {name: values.get(name, 0) for name in KVM_SREGS2.names if name != "pdptrs"} | {"pdptrs": [0] * 4}

    @ioctl("KVM_SET_SREGS2", durable=True, recorded=True, takes=lambda sregs: (sregs.fields,))
    async def set_sregs2(self, vcpu_id: int, sregs: Mapping[str, Any]) -> None:
        """KVM_SET_SREGS2. EINVAL: unknown flags, or as KVM_SET_SREGS."""
        name = "KVM_SET_SREGS2"
        self._modelled(vcpu_id, name)
        if sregs["flags"] & ~_PDPTRS_VALID:
            raise KvmError(errno.EINVAL, name, f"unknown flags {sregs['flags']:#x}", field="flags")
        changes = {name: value for name, value in sregs.items() if name not in ("flags", "pdptrs")}
        await self._of(vcpu_id, lambda: self.vcpu(vcpu_id).guest.set_special_registers(changes))

    @ioctl("KVM_TRANSLATE", takes=lambda asked: (asked["linear_address"],), gives=dict)
    async def translate(self, vcpu_id: int, address: int) -> Mapping[str, int]:
        """KVM_TRANSLATE: the guest-physical address of a linear one, as the kernel of the guest sees it."""
        guest = self._modelled(vcpu_id, "KVM_TRANSLATE")
        gpa = await self._of(vcpu_id, lambda: guest.structures.translate(address))
        found = _INVALID if gpa is None else gpa
        valid = {"valid": int(found != _INVALID), "writeable": 1, "usermode": 0}
        return {"linear_address": address, "physical_address": found, **valid}
