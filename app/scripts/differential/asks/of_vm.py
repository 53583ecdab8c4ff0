"""What a VM is asked as a whole: capabilities, MSR filters, zones of coalesced writes, clocks, addresses."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kickstand.scripts.differential.asks.form import ioctl
from kickstand.scripts.differential.story import Op, Steps
from kickstand.scripts.language.operations import DATA

_NOWHERE = 0x474F4F00  # an MSR that there is not: no guest asks for it
_UNUSED_PORT = 0x9999


def _capability(random: Random) -> Op:
    cap, values = random.choice((
        (168, (0, 1, 2, 3, 4)), (204, (0, 1, 2)), (188, (8, 9, 1 << 40)), (159, (0, 1)), (128, (5000, 1 << 32)),
        (143, (16, 64)), (201, (1, 1 << 11, 1 << 13)), (192, (4096, 4097, 0)), (12345, (0, 1)),
        (116, (1, 1 << 60)), (213, (1, 4, 1 << 40)), (129, (1 << 40, 1 << 63)), (121, (25, 1 << 32)),
    ))  # fmt: skip
    fields = {"cap": cap, "flags": random.choice((0, 0, 0, 1)), "args": [random.choice(values), 0, 0, 0]}
    return ioctl("KVM_ENABLE_CAP", fields=fields)


def _filter(random: Random) -> Op:
    given = {
        "flags": random.choice((0, 1, 3, 4)),
        "nmsrs": random.choice((1, 1, 64, 12288, 12289)),
        "base": _NOWHERE,
        "bitmap": random.choice((DATA, DATA, 8)),
    }
    none = {"flags": 0, "nmsrs": 0, "base": 0, "bitmap": 0}
    flags = random.choice((0, 0, 2, 1 << 31))
    data = "ff" * 8 if given["nmsrs"] <= 64 else "ff" * 1536  # noqa: PLR2004
    return ioctl("KVM_X86_SET_MSR_FILTER", fields={"flags": flags, "ranges": [given, *[none] * 15]}, data=data)


def _zone(random: Random) -> Op:
    name = random.choice(("KVM_REGISTER_COALESCED_MMIO", "KVM_UNREGISTER_COALESCED_MMIO"))
    return ioctl(name, fields={"addr": _UNUSED_PORT, "size": 4, "pio": random.choice((1, 1, 2, 3))})


def _clock(random: Random) -> Op:
    return ioctl("KVM_SET_CLOCK", fields={"clock": 5, "flags": random.choice((0, 2, 8, 1, 16))})


def _address(random: Random) -> Op:
    return random.choice((
        ioctl("KVM_SET_TSS_ADDR", number=random.choice((0xFFFBD000, 0xFFFFE000))),
        ioctl("KVM_SET_BOOT_CPU_ID", number=1),
        ioctl("KVM_SET_NR_MMU_PAGES", number=random.choice((0, 19, 20, 4096))),
    ))  # fmt: skip


_MAKERS: tuple[Callable[[Random], Op], ...] = (_capability, _capability, _filter, _zone, _clock, _address)


def of_vm(random: Random) -> Steps:
    """One question."""
    yield random.choice(_MAKERS)(random)
