"""What a CPU is: its CPUID table, its MSRs, its machine checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from random import Random
from struct import pack

from kickstand.core.arch.cpu.cpuid import SUPPORTED, Entry
from kickstand.core.arch.cpu.msrs import INITIAL, MC0_CTL, MC0_CTL2, Msr
from kickstand.scripts.differential.asks.form import EDGES, Question, ioctl, listed, msrs, number
from kickstand.scripts.differential.story import Op, Steps

OF_THIS_HOST = frozenset((
    Msr.TSC, Msr.TSC_ADJUST, Msr.MCG_CAP, Msr.UCODE_REV, Msr.PLATFORM_INFO, Msr.APIC_BASE, Msr.TSC_DEADLINE,
))  # fmt: skip
"""What they hold depends on the time or the host, or they have questions of their own."""
WRITES_PAGES = frozenset((
    Msr.WALL_CLOCK, Msr.SYSTEM_TIME, Msr.WALL_CLOCK_NEW, Msr.SYSTEM_TIME_NEW, Msr.STEAL_TIME, Msr.PV_EOI,
))  # fmt: skip
"""They name a page in which there is the time."""
_TYPES = (0x0606060606060606, 0x0007040600070406, 0x0101010101010101)
SOME_VALUES: dict[int, Sequence[int]] = {
    Msr.PAT: _TYPES, Msr.MISC_FEATURES_ENABLES: (0, 1), Msr.SYSENTER_CS: (0, 8, 0xFFFFFFFF), Msr.DEBUGCTL: (0,),
}  # fmt: skip
"""The recording machine's vendor module takes any value of these and keeps it, or drops it; KVM's own code does not."""
REGISTERS = tuple(sorted(INITIAL.keys() - OF_THIS_HOST - WRITES_PAGES))
NO_REGISTERS = (0x12345, 0x4F, 0x400 + 4 * 33, 0xC0010114, 0x4B564DFF)


def table(random: Random) -> Sequence[Entry]:
    """What the emulator offers, now and then with something taken away, added, or doubled."""
    entries = [replace(entry) for entry in SUPPORTED]
    for _ in range(random.choice((0, 0, 1, 2, 4))):
        at, register = random.randrange(len(entries)), random.choice(("eax", "ebx", "ecx", "edx"))
        if entries[at].function in (0, 1, 7, 0x80000001):  # a feature less; one more might be one of the host's
            entries[at] = replace(entries[at], **{register: getattr(entries[at], register) & random.getrandbits(32)})
        elif entries[at].function == 0x80000008 and register == "eax":  # noqa: PLR2004  the sizes of addresses
            sizes = random.choice((36, 40, 48)), random.choice((48, 48, 57, 0, 39))
            entries[at] = replace(entries[at], eax=sizes[1] << 8 | sizes[0])
        else:
            entries.append(Entry(random.choice((2, 4, 0x40000002, 0x80000002)), eax=random.getrandbits(32)))
    return entries


def set_cpuid(entries: Sequence[Entry], vcpu: int) -> Op:
    """KVM_SET_CPUID2."""
    return ioctl("KVM_SET_CPUID2", vcpu, hex=listed(pack("<7I12x", *astuple(entry)) for entry in entries))


def cpuid(random: Random, vcpu: int) -> Steps:
    """How many entries there are is told only to who has room for them."""
    yield ioctl("KVM_GET_CPUID2", vcpu, hex=listed([bytes(40)] * random.choice((0, 1, 5))))


def register(random: Random) -> tuple[int, int]:
    """One register and a value that it may refuse."""
    index = random.choice(REGISTERS if random.random() < 0.9 else NO_REGISTERS)  # noqa: PLR2004
    if index in SOME_VALUES:
        return index, random.choice(SOME_VALUES[index])
    return index, number(random) if random.random() < 0.6 else random.choice((*_TYPES, *EDGES))  # noqa: PLR2004


def registers(random: Random, vcpu: int) -> Steps:
    """KVM_SET_MSRS takes some, in order; KVM_GET_MSRS has what they hold now."""
    given = [register(random) for _ in range(random.choice((1, 1, 2, 5, 20)))]
    yield ioctl("KVM_SET_MSRS", vcpu, hex=msrs(given))
    yield ioctl("KVM_GET_MSRS", vcpu, hex=msrs((index, 0) for index, _ in given))


def apic_base(random: Random, vcpu: int) -> Steps:
    value = 0xFEE00000 | random.choice((0, 0x100)) | random.choice((0, 0x400, 0x800, 0xC00))
    value ^= random.choice((0, 0, 1, 1 << 47, 1 << 48, 0x1000))
    yield ioctl("KVM_SET_MSRS", vcpu, hex=msrs([(Msr.APIC_BASE, value)]))
    yield ioctl("KVM_GET_MSRS", vcpu, hex=msrs([(Msr.APIC_BASE, 0)]))
    yield ioctl("KVM_SET_MSRS", vcpu, hex=msrs([(Msr.APIC_BASE, 0xFEE00800)]))


def pages(random: Random, vcpu: int) -> Steps:
    """Enabled only where no guest looks; the bits that are reserved."""
    index = random.choice(sorted(WRITES_PAGES))
    told = index in (Msr.WALL_CLOCK, Msr.WALL_CLOCK_NEW)  # the time is told at once
    value = 0 if told else random.choice((0, 0x5000, 0x5002, 0x503E, 0x5020, 0x5004))
    yield ioctl("KVM_SET_MSRS", vcpu, hex=msrs([(index, value)]))
    yield ioctl("KVM_GET_MSRS", vcpu, hex=msrs([(index, 0)]))


def machine_check(random: Random, vcpu: int) -> Steps:
    cap = random.choice((0, 4, 32, 33, 4 | 1 << 40, 4 | 1 << 8, 4 | 1 << 24, 4 | 1 << 8 | 1 << 24))
    yield ioctl("KVM_X86_SETUP_MCE", vcpu, fields={"mcg_cap": cap})
    status = random.choice((0, 1 << 63)) | random.choice((0, 1 << 60, 1 << 57, 1 << 56, 1 << 55))
    fields = {"status": status, "addr": 0x1000, "misc": 5, "bank": random.choice((0, 3, 31, 40))}
    yield ioctl("KVM_X86_SET_MCE", vcpu, fields=fields)
    bank = random.randrange(4)
    looked = (Msr.MCG_CAP, Msr.MCG_STATUS, *range(MC0_CTL + 4 * bank, MC0_CTL + 4 * bank + 4), MC0_CTL2 + bank)
    yield ioctl("KVM_GET_MSRS", vcpu, hex=msrs((index, 0) for index in looked))


QUESTIONS: tuple[Question, ...] = (cpuid, registers, registers, registers, apic_base, pages, machine_check)
