"""Machine checks: what a CPU's banks can be, and what an error that userspace reports becomes.

The banks are MSRs; an error is written into its bank and then signalled as the bank, the CPU and the error want it.
"""

from __future__ import annotations

import errno
from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import Enum, auto

from kickstand.core.arch.cpu.msrs import MASK64, MC0_CTL, MC0_CTL2, MCE_BANKS, Msr
from kickstand.core.errors import KvmError

SETUP, REPORT = "KVM_X86_SETUP_MCE", "KVM_X86_SET_MCE"
CTL_P, CMCI_P, SER_P = 1 << 8, 1 << 10, 1 << 24
SUPPORTED = CTL_P | CMCI_P | SER_P
"""KVM_X86_GET_MCE_CAP_SUPPORTED."""
_BANKS, _EXTENDED = 0xFF, 0xFF0000
_CMCI_ENABLED = 1 << 30
_VALID, _OVERFLOW, _UNCORRECTED, _CORRUPT = 1 << 63, 1 << 62, 1 << 61, 1 << 57
_SIGNALLED, _ACTION_REQUIRED = 1 << 56, 1 << 55
_IN_PROGRESS = 4  # MCG_STATUS.MCIP


class Signal(Enum):
    """How the CPU learns of an error."""

    NONE = auto()
    EXCEPTION = auto()  # #MC
    CMCI = auto()  # LVTCMCI of its local APIC
    SHUTDOWN = auto()


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """``kvm_x86_mce``."""

    status: int
    addr: int
    misc: int
    mcg_status: int
    bank: int

    @property
    def needs_no_action(self) -> bool:
        """An uncorrected error that nobody has run into (``is_ucna``)."""
        known = self.status & (_VALID | _UNCORRECTED) == _VALID | _UNCORRECTED
        return known and not self.mcg_status and not self.status & (_CORRUPT | _SIGNALLED | _ACTION_REQUIRED)


def set_up(msrs: MutableMapping[int, int], mcg_cap: int) -> None:
    """KVM_X86_SETUP_MCE: the banks come up enabled. EINVAL: no bank, more than 32, or what is not supported."""
    banks = mcg_cap & _BANKS
    if not 0 < banks <= MCE_BANKS or mcg_cap & ~(SUPPORTED | _BANKS | _EXTENDED):
        raise KvmError(
            errno.EINVAL, SETUP, f"{mcg_cap:#x} has no bank, too many, or what there is not", field="mcg_cap"
        )
    msrs[Msr.MCG_CAP] = mcg_cap
    if mcg_cap & CTL_P:
        msrs[Msr.MCG_CTL] = MASK64
    for bank in range(banks):
        msrs[MC0_CTL + 4 * bank] = MASK64
        msrs[MC0_CTL2 + bank] = 0


def report(msrs: MutableMapping[int, int], error: MachineCheck, *, enabled: bool) -> Signal:
    """KVM_X86_SET_MCE; ``enabled``: CR4.MCE. EINVAL: no such bank, or the error is not valid."""
    mcg_cap = msrs.get(Msr.MCG_CAP, MCE_BANKS)
    if error.bank >= mcg_cap & _BANKS or not error.status & _VALID:
        raise KvmError(errno.EINVAL, REPORT, f"no bank {error.bank}, or a status that is not valid", field="bank")
    if error.needs_no_action:
        _store(msrs, error, error.status)
        msrs[Msr.MCG_STATUS] = error.mcg_status
        signals = mcg_cap & CMCI_P and msrs.get(MC0_CTL2 + error.bank, 0) & _CMCI_ENABLED
        return Signal.CMCI if signals else Signal.NONE
    if error.status & _UNCORRECTED:
        return _uncorrected(msrs, error, mcg_cap, enabled=enabled)
    return _corrected(msrs, error)


def _uncorrected(msrs: MutableMapping[int, int], error: MachineCheck, mcg_cap: int, *, enabled: bool) -> Signal:
    off = mcg_cap & CTL_P and msrs.get(Msr.MCG_CTL, 0) != MASK64
    if off or msrs.get(MC0_CTL + 4 * error.bank, 0) != MASK64:
        return Signal.NONE
    if msrs.get(Msr.MCG_STATUS, 0) & _IN_PROGRESS or not enabled:
        return Signal.SHUTDOWN
    old = msrs.get(MC0_CTL + 4 * error.bank + 1, 0)
    _store(msrs, error, error.status | (_OVERFLOW if old & _VALID else 0))
    msrs[Msr.MCG_STATUS] = error.mcg_status
    return Signal.EXCEPTION


def _corrected(msrs: MutableMapping[int, int], error: MachineCheck) -> Signal:
    """One that is worse and still there stays."""
    at = MC0_CTL + 4 * error.bank + 1
    old = msrs.get(at, 0)
    if old & _VALID and old & _UNCORRECTED:
        msrs[at] = old | _OVERFLOW
    else:
        _store(msrs, error, error.status | (_OVERFLOW if old & _VALID else 0))
    return Signal.NONE


def _store(msrs: MutableMapping[int, int], error: MachineCheck, status: int) -> None:
    first = MC0_CTL + 4 * error.bank
    msrs[first + 1], msrs[first + 2], msrs[first + 3] = status, error.addr, error.misc
