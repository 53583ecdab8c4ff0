"""A local APIC's base register: where its page is, and whether it is disabled, in xAPIC or in x2APIC mode."""

from __future__ import annotations

from kickstand.core.arch.irq.registers import (
    APIC_BASE_DEFAULT,
    BASE_ADDRESS,
    BASE_BSP,
    BASE_ENABLE,
    BASE_RESERVED,
    BASE_X2APIC,
    ENABLED,
    ID,
    LDR,
    MASK32,
    PAGE,
    REGISTERS,
    SPIV,
)
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.uapi import Quirk


class RefusedError(Exception):
    """No such register, or not in this mode, or not with this value: an MSR access gets #GP, one by MMIO nothing."""


class ApicMode:
    """The part of an APIC that depends on nothing else. ``vcpu_id`` is its first id."""

    def __init__(self, vcpu_id: int, *, boot: bool, arch: KvmArch) -> None:
        self.vcpu_id = vcpu_id
        self.boot = boot
        self.arch = arch
        self.base = APIC_BASE_DEFAULT | BASE_ENABLE | (BASE_BSP if boot else 0)
        self.page = bytearray(REGISTERS)
        self.words = memoryview(self.page).cast("I")
        self.set_id(vcpu_id)

    @property
    def enabled(self) -> bool:
        """Enabled by its base register (``kvm_apic_hw_enabled``)."""
        return bool(self.base & BASE_ENABLE)

    @property
    def accepts(self) -> bool:
        """Enabled by software too, in the spurious vector register (``apic_enabled``)."""
        return bool(self.base & BASE_ENABLE and self.words[SPIV >> 2] & ENABLED)

    @property
    def x2apic(self) -> bool:
        """Its registers are MSRs."""
        return self.base & (BASE_X2APIC | BASE_ENABLE) == BASE_X2APIC | BASE_ENABLE

    @property
    def address(self) -> int:
        """Where its page is, while it is in xAPIC mode."""
        return self.base & BASE_ADDRESS

    def answers(self, gpa: int) -> bool:
        """An access of guest memory at ``gpa`` is one of its page, by a quirk also while that is not in use."""
        if not self.address <= gpa < self.address + PAGE:
            return False
        return self.in_use or self.arch.has_quirk(Quirk.LAPIC_MMIO_HOLE)

    @property
    def in_use(self) -> bool:
        """Its registers are in the page."""
        return self.enabled and not self.x2apic

    def check_base(self, value: int, *, host: bool = False) -> None:
        """What may be written into APIC_BASE. ``RefusedError`` else (``kvm_set_apic_base``).

        A guest goes from mode to mode as hardware lets it; ``host`` to any.
        """
        mode = value & (BASE_ENABLE | BASE_X2APIC)
        if value & BASE_RESERVED or value >> 52 or mode == BASE_X2APIC:
            raise RefusedError
        if host:
            return
        if self.x2apic and mode == BASE_ENABLE:
            raise RefusedError  # the way back leads through disabling it
        if not self.enabled and mode == BASE_ENABLE | BASE_X2APIC:
            raise RefusedError

    def set_base(self, value: int) -> None:
        """``kvm_lapic_set_base``: the id follows the mode."""
        old, self.base = self.base, value
        if (old ^ value) & BASE_ENABLE and value & BASE_ENABLE:
            self.set_id(self.vcpu_id)
        if not (old ^ value) & BASE_X2APIC:
            return
        if value & BASE_X2APIC:
            self.words[ID >> 2] = self.vcpu_id
            self.words[LDR >> 2] = x2apic_ldr(self.vcpu_id)
        elif value & BASE_ENABLE:
            self.set_id(self.vcpu_id)

    def set_id(self, number: int) -> None:
        """The id of xAPIC mode has eight bits."""
        self.words[ID >> 2] = number << 24 & MASK32


def x2apic_ldr(number: int) -> int:
    """The logical id that x2APIC derives from the id."""
    return (number >> 4) << 16 | 1 << (number & 0xF)
