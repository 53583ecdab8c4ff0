"""The CPU in the form of KVM's state structures, and back: FPU, XSAVE area, debug registers, events that wait.

What comes back is checked as the kernel checks it: EINVAL, and nothing has changed.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING, Any

from kickstand.core.errors import KvmError
from kickstand.guests.x86.emulated.interrupts.events import Event, Events, Told
from kickstand.guests.x86.memory.page_walk import READ
from kickstand.guests.x86.snapshot import fpu_registers, fpu_words, load_fpu
from kickstand.guests.x86.state.faults import NMI, WITH_ERROR_CODE, GuestFaultError
from kickstand.guests.x86.state.registers import CR0_PG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

XSAVE_SIZE = 4096
_FPU = Struct("<128s2HBxH2Q256sI4x")
_FXSAVE = Struct("<2HBxH2Q2I128s256s")
_HEADER = Struct("<2Q")
_HEADER_AT = 512
_LEGACY = 3  # x87 and SSE: all the components there are
_MXCSR_MASK, _MXCSR_RESET = 0xFFFF, 0x1F80
_DEBUG = Struct("<7Q72x")
_NO_MXCSR = 0  # the structure has a place for it, and the kernel looks at it in neither direction
_INT_SHADOW = 2  # KVM_X86_SHADOW_INT_STI
_SHADOWS = 3  # that and KVM_X86_SHADOW_INT_MOV_SS
_SOFTWARE = (3, 4)  # INT3 and INTO: a guest that is still there raises them again
_VALID_NMI, _VALID_SIPI, _VALID_SHADOW, _VALID_SMM = 1, 2, 4, 8
_EXCEPTIONS = 32
_LINEAR, _SIGN, _ALL = (1 << 48) - 1, 1 << 47, (1 << 64) - 1


def get_fpu(state: CpuState) -> bytes:
    """``struct kvm_fpu``."""
    fpu = fpu_words(state)
    fpr, xmm = fpu_registers(state)
    ip, dp = fpu["last_ip"], fpu["last_dp"]
    return _FPU.pack(fpr, fpu["fcw"], fpu["fsw"], fpu["ftwx"], fpu["last_opcode"], ip, dp, xmm, _NO_MXCSR)


def set_fpu(state: CpuState, data: bytes) -> None:
    """KVM_SET_FPU."""
    fpr, fcw, fsw, ftwx, opcode, ip, dp, xmm, _ = _FPU.unpack(data)
    _set(state, fpr, xmm, {"fcw": fcw, "fsw": fsw, "ftwx": ftwx, "mxcsr": state.mxcsr}, opcode, ip, dp)


def get_xsave(state: CpuState) -> bytes:
    """``struct kvm_xsave``: the legacy area, and a header that names its two components."""
    fpu = fpu_words(state)
    words = (fpu[name] for name in ("fcw", "fsw", "ftwx", "last_opcode", "last_ip", "last_dp", "mxcsr"))
    legacy = _FXSAVE.pack(*words, _MXCSR_MASK, *fpu_registers(state))
    return (legacy.ljust(_HEADER_AT, b"\0") + _HEADER.pack(_LEGACY, 0)).ljust(XSAVE_SIZE, b"\0")


def set_xsave(state: CpuState, data: bytes) -> None:
    """KVM_SET_XSAVE. EINVAL: components that there are not, or bits of MXCSR. One that is left out is reset."""
    fcw, fsw, ftwx, opcode, ip, dp, mxcsr, _, fpr, xmm = _FXSAVE.unpack_from(data)
    components, compacted = _HEADER.unpack_from(data, _HEADER_AT)
    if components & ~_LEGACY or compacted or (components & _LEGACY and mxcsr & ~_MXCSR_MASK):
        raise KvmError(errno.EINVAL, "KVM_SET_XSAVE", "components or MXCSR bits that there are not", field="region")
    if not components & _LEGACY:
        mxcsr = _MXCSR_RESET
    if not components & 1:
        fcw, fsw, ftwx, opcode, ip, dp, fpr = 0x37F, 0, 0, 0, 0, 0, bytes(128)
    if not components & 2:
        xmm = bytes(256)
    _set(state, fpr, xmm, {"fcw": fcw, "fsw": fsw, "ftwx": ftwx, "mxcsr": mxcsr}, opcode, ip, dp)


def _set(state: CpuState, fpr: bytes, xmm: bytes, words: dict[str, int], opcode: int, ip: int, dp: int) -> None:
    load_fpu(
        state,
        {
            **words,
            "last_opcode": opcode,
            "last_ip": ip,
            "last_dp": dp,
            "last_cs": 0,
            "last_ds": 0,
            "fpr": [fpr[at : at + 10].hex() for at in range(0, 128, 16)],
            "xmm": [xmm[at : at + 16].hex() for at in range(0, 256, 16)],
        },
    )
    state.update_float_modes()


def get_debug_registers(state: CpuState) -> bytes:
    """``struct kvm_debugregs``."""
    return _DEBUG.pack(*state.dr[:4], state.dr[6], state.dr[7], 0)


def set_debug_registers(state: CpuState, data: bytes) -> None:
    """KVM_SET_DEBUGREGS. EINVAL: flags, or DR6 and DR7 wider than 32 bits."""
    *addresses, dr6, dr7, flags = _DEBUG.unpack(data)
    if flags or dr6 >> 32 or dr7 >> 32:
        raise KvmError(errno.EINVAL, "KVM_SET_DEBUGREGS", "flags, or DR6 or DR7 wider than 32 bits", field="flags")
    state.dr[:4] = addresses
    state.dr[6], state.dr[7] = dr6, dr7


def get_events(state: CpuState, events: Events) -> dict[str, Any]:
    """``struct kvm_vcpu_events``, as far as it is the guest's."""
    queued, told = events.queued, events.told
    injected = queued is not None and queued.exception
    if queued is not None and injected and queued.vector != told.exception:
        told = replace(
            told,
            exception=queued.vector,
            has_error_code=int(queued.error is not None),
            error_code=queued.error or 0,
        )
    return {
        "exception": {
            "injected": int(injected and told.exception not in _SOFTWARE),
            "nr": told.exception,
            "has_error_code": told.has_error_code,
            "pending": 0,
            "error_code": told.error_code,
        },
        "interrupt": {
            "injected": int(events.interrupt is not None),
            "nr": told.interrupt if events.interrupt is None else events.interrupt,
            "soft": 0,
            "shadow": (told.shadow or _INT_SHADOW) if state.shadow else 0,
        },
        "nmi": {
            "injected": int(events.nmi_injected),
            "pending": int(events.nmis > 0),
            "masked": int(events.nmi_masked),
        },
        "flags": _VALID_NMI | _VALID_SHADOW | _VALID_SMM,
    }


def set_events(state: CpuState, events: Events, values: Mapping[str, Any]) -> None:
    """KVM_SET_VCPU_EVENTS. EINVAL: unknown flags, or a vector that is no exception's."""
    exception, interrupt, nmi, flags = values["exception"], values["interrupt"], values["nmi"], values["flags"]
    injected = exception["injected"]  # ``pending`` counts with KVM_CAP_EXCEPTION_PAYLOAD only
    if flags & ~(_VALID_NMI | _VALID_SIPI | _VALID_SHADOW | _VALID_SMM):
        raise KvmError(errno.EINVAL, "KVM_SET_VCPU_EVENTS", f"unknown flags {flags:#x}", field="flags")
    if injected and (exception["nr"] >= _EXCEPTIONS or exception["nr"] == NMI):
        raise KvmError(errno.EINVAL, "KVM_SET_VCPU_EVENTS", f"{exception['nr']} is no exception", field="exception")
    events.queued = _exception(exception) if injected else None
    events.interrupt = interrupt["nr"] if interrupt["injected"] else None
    shadow = interrupt["shadow"] & _SHADOWS if flags & _VALID_SHADOW else events.told.shadow
    if flags & _VALID_SHADOW:
        state.set_shadow(shadow=bool(shadow))
    events.nmi_injected = bool(nmi["injected"])
    if flags & _VALID_NMI:
        events.nmis = int(bool(nmi["pending"]))
    events.nmi_masked = bool(nmi["masked"])
    coded = int(bool(exception["has_error_code"]))
    events.told = Told(exception["nr"], coded, exception["error_code"], interrupt["nr"], shadow)


def _exception(values: Mapping[str, int]) -> Event:
    vector = values["nr"]
    coded = values["has_error_code"] and vector in WITH_ERROR_CODE
    return Event(vector, values["error_code"] if coded else None, exception=True)


class Structures:
    """One CPU's state in KVM's structures, as it is now."""

    def __init__(self, state: CpuState, events: Events, virtual: VirtualMemory) -> None:
        self._state = state
        self._events = events
        self._virtual = virtual

    @property
    def fpu(self) -> bytes:
        """``struct kvm_fpu``."""
        return get_fpu(self._state)

    @fpu.setter
    def fpu(self, data: bytes) -> None:
        set_fpu(self._state, data)

    @property
    def xsave(self) -> bytes:
        """``struct kvm_xsave``."""
        return get_xsave(self._state)

    @xsave.setter
    def xsave(self, data: bytes) -> None:
        set_xsave(self._state, data)

    @property
    def debug_registers(self) -> bytes:
        """``struct kvm_debugregs``."""
        return get_debug_registers(self._state)

    @debug_registers.setter
    def debug_registers(self, data: bytes) -> None:
        set_debug_registers(self._state, data)

    @property
    def events(self) -> dict[str, Any]:
        """``struct kvm_vcpu_events``."""
        return get_events(self._state, self._events)

    @events.setter
    def events(self, values: Mapping[str, Any]) -> None:
        set_events(self._state, self._events, values)

    def translate(self, address: int) -> int | None:
        """The guest-physical address behind a linear one, for the kernel; None where there is none.

        Without paging all 64 bits of it are the address (``nonpaging_gva_to_gpa``), whatever the guest could say; with
        four levels 48 bits are looked at.
        """
        if not self._state.cr[0] & CR0_PG:
            return address
        if self._state.long_mode:
            address = (address & _LINEAR ^ _SIGN) - _SIGN & _ALL
        try:
            return self._virtual.gpa(address, READ, user=False)
        except GuestFaultError:
            return None
