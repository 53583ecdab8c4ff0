"""How a question is put: the operation ``ioctl``, with fields or with the bytes of a structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from struct import pack
from typing import Any

from kickstand.scripts.differential.story import Op, Steps, op

Question = Callable[[Random, int], Steps]
EDGES = (0, 1, 2, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 46, 1 << 47, 1 << 48,
         1 << 63, (1 << 64) - 1, 0xFFFF_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF)  # fmt: skip


def ioctl(name: str, vcpu: int | None = None, **args: Any) -> Op:
    """Any ioctl."""
    return op("ioctl", name=name, vcpu=vcpu, **args)


def number(random: Random) -> int:
    """64 bits: an edge, one bit, some bits, any."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(EDGES)
    if kind == 1:
        return 1 << random.randrange(64)
    return random.getrandbits(random.choice((8, 16, 32, 48, 64)))


def listed(entries: Iterable[bytes]) -> str:
    """A structure that ends in an array: how many, padding, the entries."""
    items = list(entries)
    return (pack("<2I", len(items), 0) + b"".join(items)).hex()


def msrs(entries: Iterable[tuple[int, int]]) -> str:
    """``struct kvm_msrs``."""
    return listed(pack("<2IQ", index, 0, value) for index, value in entries)


def words(*values: int) -> str:
    """64 bits each."""
    return pack(f"<{len(values)}Q", *values).hex()
