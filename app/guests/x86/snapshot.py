"""A CPU as JSON and back: its architectural registers, as KVM's own GET ioctls name them.

What comes back may be from anyone. So nothing of the translator is kept: a loaded CPU is one after reset with every
number put in its place and cut to its width, and what the translator derives of them is derived again.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from kickstand.guests.x86.emulated.exits.pending import within
from kickstand.guests.x86.emulated.interrupts.events import Event, Events, Told
from kickstand.guests.x86.state.registers import GPR_NAMES, CpuState
from kickstand.guests.x86.state.sregs import SREG_NAMES, assign_sregs, get_sregs, make_consistent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kickstand.core.arch.cpu.cpuid import Cpuid

FORMAT = "x86 registers 1"
_FPU = {
    "fcw": "fpuc",
    "last_opcode": "fpop",
    "last_cs": "fpcs",
    "last_ip": "fpip",
    "last_ds": "fpds",
    "last_dp": "fpdp",
}
_MSRS = (
    "sysenter_cs",
    "sysenter_esp",
    "sysenter_eip",
    "star",
    "lstar",
    "cstar",
    "syscall_mask",
    "kernel_gs_base",
    "tsc_aux",
    "misc_enable",
    "pat",
)
_DEBUG = (0, 1, 2, 3, 6, 7)
_TOP_SHIFT, _TOP = 11, 7
_MASK16, _MASK32, _MASK64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
_ST_BYTES, _XMM_BYTES = 10, 16
_X87_BYTES = int.from_bytes((b"\xff" * _ST_BYTES).ljust(_XMM_BYTES, b"\0") * 8, "little")
_MOST_NMIS = 2
_EXCEPTIONS = 32


def dump_registers(state: CpuState, apic_base: int) -> dict[str, Any]:
    """All that a program can see of a CPU."""
    return {
        "regs": [*state.gpr, state.rip, state.flags],
        "sregs": get_sregs(state, apic_base),
        "debugregs": [state.dr[index] for index in _DEBUG],
        "msrs": {name: getattr(state, name) for name in _MSRS},
        "fpu": dump_fpu(state),
        "shadow": state.shadow,
    }


def load_registers(saved: Mapping[str, Any], cpuid: Cpuid) -> tuple[CpuState, int]:
    """A CPU and its APIC base. ``KeyError``, ``TypeError``, ``ValueError``: these are no registers."""
    state = CpuState()
    state.reset()
    *gpr, rip, rflags = saved["regs"]
    if len(gpr) != len(GPR_NAMES):
        raise ValueError("there are sixteen general registers")
    for index, value in enumerate(gpr):
        state.gpr[index] = _bits(value, _MASK64)
    state.rip, state.flags = _bits(rip, _MASK64), _bits(rflags, _MASK64)
    sregs = _sregs(saved["sregs"])
    assign_sregs(state, sregs)
    for index, value in zip(_DEBUG, saved["debugregs"], strict=True):
        state.dr[index] = _bits(value, _MASK64)
    for name in _MSRS:
        setattr(state, name, _bits(saved["msrs"][name], _MASK32 if name == "sysenter_cs" else _MASK64))
    load_fpu(state, saved["fpu"])
    make_consistent(state, cpuid)
    state.set_shadow(shadow=_flag(saved["shadow"]))
    return state, int(sregs["apic_base"])


def dump_events(events: Events) -> dict[str, Any]:
    """What waits to be delivered (``kvm_vcpu_events``)."""
    return {
        "queued": None if events.queued is None else events.queued.to_json(),
        "interrupt": events.interrupt,
        "nmis": events.nmis,
        "nmi_masked": events.nmi_masked,
        "nmi_injected": events.nmi_injected,
        "told": list(astuple(events.told)),
    }


def load_events(saved: Mapping[str, Any]) -> Events:
    """Undo ``dump_events``. ``KeyError``, ``TypeError``, ``ValueError``: nothing like that can wait."""
    interrupt = None if saved["interrupt"] is None else within(saved["interrupt"], 0, 0xFF)
    queued = None if saved["queued"] is None else _event(saved["queued"])
    nmis = within(saved["nmis"], 0, _MOST_NMIS)
    told = Told(*(_bits(number, _MASK32) for number in saved.get("told", ())))
    return Events(queued, interrupt, nmis, _flag(saved["nmi_masked"]), _flag(saved.get("nmi_injected", False)), told)


def _event(saved: Mapping[str, Any]) -> Event:
    def number(name: str, mask: int) -> int | None:
        return None if saved[name] is None else _bits(saved[name], mask)

    exception = _flag(saved["exception"])
    vector = within(saved["vector"], 0, _EXCEPTIONS - 1 if exception else 0xFF)
    return_rip, address = number("return_rip", _MASK64), number("address", _MASK64)
    return Event(vector, number("error", _MASK32), _flag(saved["software"]), exception, return_rip, address)


def _bits(value: object, mask: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no number")
    return value & mask


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _sregs(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Every register with every field, cut to 64 bits; the narrower ones are cut where they are put."""
    return {name: _sreg(saved[name]) for name in SREG_NAMES}


def _sreg(value: Any) -> Any:
    if isinstance(value, int):
        return value & _MASK64
    return {str(name): _bits(member, _MASK64) for name, member in value.items()}


def dump_fpu(state: CpuState) -> dict[str, Any]:
    fpr, xmm = fpu_registers(state)
    return {
        **fpu_words(state),
        "fpr": [fpr[at : at + _ST_BYTES].hex() for at in range(0, len(fpr), _XMM_BYTES)],
        "xmm": [xmm[at : at + _XMM_BYTES].hex() for at in range(0, len(xmm), _XMM_BYTES)],
    }


def fpu_words(state: CpuState) -> dict[str, int]:
    """Control, status and what else is not a register."""
    return {
        **{name: getattr(state, field) for name, field in _FPU.items()},
        "fsw": state.fpus & ~(_TOP << _TOP_SHIFT) | (state.fpstt & _TOP) << _TOP_SHIFT,
        "ftwx": sum(1 << index for index, empty in enumerate(state.fptags) if not empty),
        "mxcsr": state.mxcsr,
    }


def fpu_registers(state: CpuState) -> tuple[bytes, bytes]:
    """The registers of x87 and SSE, 16 bytes each; what follows the ten of one of the former is zero."""
    x87, wide = int.from_bytes(bytes(state.fpregs), "little") & _X87_BYTES, bytes(state.xmm)
    step = len(wide) // len(state.xmm)
    return x87.to_bytes(_XMM_BYTES * 8, "little"), b"".join(
        [wide[at : at + _XMM_BYTES] for at in range(0, len(wide), step)]
    )


def load_fpu(state: CpuState, saved: Mapping[str, Any]) -> None:
    for name, field in _FPU.items():
        setattr(state, field, _bits(saved[name], _MASK64 if name in ("last_ip", "last_dp") else _MASK16))
    status, full = _bits(saved["fsw"], _MASK16), _bits(saved["ftwx"], 0xFF)
    state.fpus, state.fpstt = status & ~(_TOP << _TOP_SHIFT), status >> _TOP_SHIFT & _TOP
    state.fptags[:] = [1 - (full >> index & 1) for index in range(8)]
    state.mxcsr = _bits(saved["mxcsr"], _MASK16)
    for register, text in zip(state.fpregs, saved["fpr"], strict=True):
        data = _exactly(text, _ST_BYTES)
        register.mantissa, register.exponent = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
    for xmm, text in zip(state.xmm, saved["xmm"], strict=True):
        data = _exactly(text, _XMM_BYTES)
        xmm[0], xmm[1] = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


def _exactly(text: str, length: int) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != length:
        raise ValueError(f"a register of {length} bytes, not {len(data)}")
    return data
