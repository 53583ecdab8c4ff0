"""What is model-specific of one CPU: its CPUID table, its MSRs, its time-stamp counter.

The MSRs are one store for the guest's instructions and for ioctls; those that the translator uses live in its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kickstand.core.arch.cpu.cpuid import SUPPORTED, Cpuid, Entry, Feature, check_entries
from kickstand.core.arch.cpu.msrs import (
    APIC_BSP,
    APIC_ENABLE,
    INITIAL,
    MASK64,
    Msr,
    Refused,
    Situation,
    check_read,
    check_there,
    check_write,
)
from kickstand.core.arch.kvm_arch import DISABLE_HLT
from kickstand.guests.x86.state.debug import REGISTERS, GuestDebug
from kickstand.guests.x86.state.registers import CR0_PG
from kickstand.guests.x86.state.segments import FS, GS
from kickstand.guests.x86.state.tsc import Tsc

if TYPE_CHECKING:
    from kickstand.core.arch.kvm_arch import KvmArch
    from kickstand.guests.x86.state.registers import CpuState

APIC_DEFAULT = 0xFEE00000 | APIC_ENABLE
APIC_MSRS = frozenset((Msr.APIC_BASE, Msr.TSC_DEADLINE, *range(0x800, 0x900)))
"""Those of the local APIC, which with an irqchip in the kernel are answered there."""
_IN_STATE = {
    Msr.SYSENTER_CS: "sysenter_cs",
    Msr.SYSENTER_ESP: "sysenter_esp",
    Msr.SYSENTER_EIP: "sysenter_eip",
    Msr.STAR: "star",
    Msr.LSTAR: "lstar",
    Msr.CSTAR: "cstar",
    Msr.SYSCALL_MASK: "syscall_mask",
    Msr.KERNEL_GS_BASE: "kernel_gs_base",
    Msr.TSC_AUX: "tsc_aux",
    Msr.MISC_ENABLE: "misc_enable",
    Msr.PAT: "pat",
    Msr.EFER: "efer",
}
_BASES = {Msr.FS_BASE: FS, Msr.GS_BASE: GS}
_ALIASES: dict[int, int] = {Msr.WALL_CLOCK: Msr.WALL_CLOCK_NEW, Msr.SYSTEM_TIME: Msr.SYSTEM_TIME_NEW}
"""One register under two numbers."""
Written = Callable[[int, int], None]


def _nobody(_index: int, _value: int) -> None:
    """Nobody wants to know."""


class Model:
    """What stays when the CPU's state moves to another place."""

    def __init__(self, arch: KvmArch, *, boot: bool = True) -> None:
        self.arch = arch
        self.cpuid = Cpuid()
        self.values: dict[int, int] = {Msr.APIC_BASE: APIC_DEFAULT | (APIC_BSP if boot else 0)}  # that were written
        self.answered: frozenset[int] = frozenset()
        """MSRs that the kernel answers: an access stops with ``MsrExit``."""
        self.debug = GuestDebug()
        self.enforce_pv = False
        """KVM_CAP_ENFORCE_PV_FEATURE_CPUID: only those of KVM's own features are there that CPUID lists."""
        self.tsc = Tsc(arch)

    @property
    def has_pages(self) -> bool:
        """The guest has named pages for KVM to write (``emulated.paravirtual``)."""
        values = self.values
        return bool((values.get(Msr.SYSTEM_TIME_NEW, 0) | values.get(Msr.STEAL_TIME, 0)) & 1)

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.values[Msr.APIC_BASE]

    @apic_base.setter
    def apic_base(self, value: int) -> None:
        self.values[Msr.APIC_BASE] = value
        self.cpuid.follow(osxsave=False, apic=bool(value & APIC_ENABLE))

    def set_cpuid(self, entries: list[Entry]) -> None:
        """KVM_SET_CPUID2; errors as ``check_entries``."""
        self.cpuid = Cpuid(check_entries(entries))
        self.apic_base = self.apic_base  # one of its features follows it
        if self.arch.disabled_exits & DISABLE_HLT:
            self.cpuid.without(Feature.KVM_PV_UNHALT)

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "cpuid": None if self.cpuid.entries == list(SUPPORTED) else [_numbers(e) for e in self.cpuid.entries],
            "values": {str(index): value for index, value in sorted(self.values.items())},
            "tsc": self.tsc.now,
            "tsc_khz": self.tsc.khz,
            "enforce_pv": self.enforce_pv,
            "debug": [self.debug.control, *self.debug.registers],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Undo ``dump``. ``KeyError``, ``TypeError``, ``ValueError``, ``KvmError``: nothing like that can be."""
        table = SUPPORTED if saved["cpuid"] is None else [Entry(*_checked(row)) for row in saved["cpuid"]]
        values = {int(index): _number(value) for index, value in saved["values"].items()}
        if not values.keys() <= INITIAL.keys() or Msr.APIC_BASE not in values:
            raise ValueError("these are not the registers of a CPU")
        self.cpuid, self.values = Cpuid(check_entries(table)), values
        self.tsc.khz = max(1, _number(saved["tsc_khz"]) & 0xFFFFFFFF)
        self.tsc.now = _number(saved["tsc"])
        self.enforce_pv = bool(saved.get("enforce_pv", False))
        control, *registers = [_number(value) for value in saved.get("debug", [0] * (1 + REGISTERS))]
        if len(registers) != REGISTERS:
            raise ValueError(f"there are {REGISTERS} debug registers")
        self.debug = GuestDebug.of(control & 0xFFFFFFFF, registers)


def _numbers(entry: Entry) -> list[int]:
    return [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx]


def _checked(row: list[int]) -> list[int]:
    return [_number(value) & 0xFFFFFFFF for value in row]


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MASK64:
        raise ValueError(f"{value!r} is no register's value")
    return value


class Msrs:
    """The model-specific registers of one CPU. Raises ``msrs.Refused`` where a guest gets #GP."""

    def __init__(self, state: CpuState, model: Model) -> None:
        self._state = state
        self._model = model
        self.written: Written = _nobody
        """Called with the register that has been written, and what was to be written."""

    def _situation(self, *, host: bool) -> Situation:
        values = self._model.values
        return Situation(
            self._model.cpuid,
            host,
            paging=bool(self._state.cr[0] & CR0_PG),
            hwcr=values.get(Msr.HWCR, 0),
            mcg_cap=values.get(Msr.MCG_CAP, INITIAL[Msr.MCG_CAP]),
            enforce_pv=self._model.enforce_pv,
            platform_info=self._model.arch.platform_info,
        )

    def read(self, index: int, *, host: bool = False) -> int:
        """RDMSR, or one of KVM_GET_MSRS."""
        check_read(index, self._situation(host=host))
        return self._get(index)

    def _get(self, index: int) -> int:
        if index == Msr.TSC:
            return self._model.tsc.now
        if index in _BASES:
            return self._state.segment[_BASES[Msr(index)]].base
        name = _IN_STATE.get(index)  # type: ignore[call-overload]  # an int is as good a key
        if name is not None:
            return int(getattr(self._state, name))
        return self._model.values.get(_ALIASES.get(index, index), INITIAL[index])

    def write(self, index: int, value: int, *, host: bool = False) -> None:
        """WRMSR, or one of KVM_SET_MSRS."""
        situation = self._situation(host=host)
        check_there(index, situation)
        self._set(index, check_write(index, value, self._get(index), situation), host=host)
        self.written(_ALIASES.get(index, index), value)

    def read_all(self, indices: Iterable[int]) -> list[int]:
        """KVM_GET_MSRS: the values up to the first that there is not."""
        values: list[int] = []
        with suppress(Refused):
            values.extend(self.read(index, host=True) for index in indices)
        return values

    def write_all(self, entries: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were taken; the next one was refused."""
        taken = 0
        with suppress(Refused):
            for index, value in entries:
                self.write(index, value, host=True)
                taken += 1
        return taken

    def _set(self, index: int, value: int, *, host: bool) -> None:
        model, state = self._model, self._state
        if index == Msr.TSC and host:
            model.tsc.synchronize(value)
        elif index == Msr.TSC:
            before = model.tsc.offset
            model.tsc.now = value
            self._adjust(model.tsc.offset - before)
        elif index == Msr.TSC_ADJUST:
            if not host:
                model.tsc.offset += value - model.values.get(index, 0)
            model.values[index] = value
        elif index == Msr.APIC_BASE:
            model.apic_base = value
        elif index in _BASES:
            state.segment[_BASES[Msr(index)]].base = value
        elif index in _IN_STATE:
            setattr(state, _IN_STATE[Msr(index)], value)
            if index == Msr.EFER:
                state.update_hidden_flags()
        else:
            model.values[_ALIASES.get(index, index)] = value

    def _adjust(self, distance: int) -> None:
        adjusted = self._model.values.get(Msr.TSC_ADJUST, 0) + distance
        self._model.values[Msr.TSC_ADJUST] = adjusted & MASK64
