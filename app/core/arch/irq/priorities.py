"""What a local APIC has been asked for and what it serves: requests, priorities, which vector is next."""

from __future__ import annotations

from kickstand.core.arch.irq.mode import ApicMode
from kickstand.core.arch.irq.registers import EXTINT_MODE, MASKED, TASKPRI, Reg
from kickstand.core.arch.kvm_arch import KvmArch


class Priorities(ApicMode):
    """The part of an APIC that holds vectors: in ``irr``, ``isr`` and ``tmr`` bit n is vector n."""

    def __init__(self, vcpu_id: int, *, boot: bool, arch: KvmArch) -> None:
        super().__init__(vcpu_id, boot=boot, arch=arch)
        self.irr = self.isr = self.tmr = 0

    def accept(self, vector: int, *, level_triggered: bool = False) -> bool:
        """A fixed interrupt arrives: it is requested, unless the APIC is disabled."""
        if not self.accepts:
            return False
        bit = 1 << vector
        self.tmr = self.tmr | bit if level_triggered else self.tmr & ~bit
        self.irr |= bit
        return True

    @property
    def processor_priority(self) -> int:
        """PPR: the higher class of the task's priority and of the vector in service."""
        task = self.words[TASKPRI >> 2] & 0xFF
        served = self.isr.bit_length() - 1 if self.isr else 0
        return task if task & 0xF0 >= served & 0xF0 else served & 0xF0

    def highest(self) -> int | None:
        """The vector that would be delivered now (``kvm_apic_has_interrupt``)."""
        if not self.irr or not self.enabled:
            return None
        vector = self.irr.bit_length() - 1
        return vector if vector & 0xF0 > self.processor_priority else None

    def take(self) -> int | None:
        """The highest vector is being delivered: it is in service from now on."""
        vector = self.highest()
        if vector is not None:
            self.irr &= ~(1 << vector)
            self.isr |= 1 << vector
        return vector

    @property
    def requested(self) -> tuple[int, ...]:
        """The vectors that wait, highest first."""
        return tuple(vector for vector in range(self.irr.bit_length() - 1, -1, -1) if self.irr >> vector & 1)

    @property
    def task_priority(self) -> int:
        """TPR as CR8 has it, 0 to 15."""
        return self.words[TASKPRI >> 2] >> 4 & 0xF

    def set_task_priority(self, priority: int) -> None:
        """TPR, all eight bits."""
        self.words[TASKPRI >> 2] = priority & 0xFF

    @property
    def vapic_word(self) -> int:
        """What a guest needs to know to lower its priority by itself: priority, class in service, vector that waits."""
        served, waits = max(self.isr.bit_length() - 1, 0), max(self.irr.bit_length() - 1, 0)
        return self.words[TASKPRI >> 2] & 0xFF | (served & 0xF0) << 8 | waits << 24

    @property
    def takes_extint(self) -> bool:
        """The 8259's wire reaches this CPU (``kvm_apic_accept_pic_intr``)."""
        lvt0 = self.words[Reg.LVT0 >> 2]
        return not self.enabled or lvt0 & (MASKED | 0x700) == EXTINT_MODE

    def local(self, entry: int) -> tuple[int, int] | None:
        """The delivery mode and the vector of an entry of the local vector table; None: masked, or disabled."""
        value = self.words[entry >> 2]
        return None if value & MASKED or not self.enabled else (value >> 8 & 7, value & 0xFF)

    def _bitmap(self, base: int) -> int:
        return self.isr if base == Reg.ISR else self.tmr if base == Reg.TMR else self.irr

    def _set_bitmap(self, base: int, bits: int) -> None:
        if base == Reg.ISR:
            self.isr = bits
        elif base == Reg.TMR:
            self.tmr = bits
        else:
            self.irr = bits
