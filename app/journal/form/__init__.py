"""The form of everything that is kept of a machine: one model for both directions, checked in both.

``Part.of(live)`` reads the fields of what lives, ``into(live)`` puts them back; a field that is added here is written,
read and restored. A journal is this program's own, a snapshot may be from anyone: both go through here, so that no
number is out of its range and no text longer than an exit can carry when the machine is put together, and nothing is
written that could not be read again. The CPU's registers are checked by the guest engine, the slots by KVM's own rules.
"""

from kickstand.journal.form.arch import CLOCK, COALESCED, Clock, Coalesced, KvmArch
from kickstand.journal.form.interrupts import INTERRUPTS, Interrupts
from kickstand.journal.form.machine import FORMAT, MACHINE, Machine, Switches
from kickstand.journal.form.part import Encoded, decoded, encoded, sentence
from kickstand.journal.form.slots import SlotParts, Slots
from kickstand.journal.form.vcpu import COUNTERS, CPU, Cpu, counters, load_counters

__all__ = [
    "CLOCK", "COALESCED", "COUNTERS", "CPU", "FORMAT", "INTERRUPTS", "MACHINE", "Clock", "Coalesced", "Cpu", "Encoded",
    "Interrupts", "KvmArch", "Machine", "SlotParts", "Slots", "Switches", "counters", "decoded", "encoded",
    "load_counters", "sentence",
]  # fmt: skip
