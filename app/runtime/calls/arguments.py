"""What a program passes to ``ioctl``: a number, which may be the address of a structure in its own memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

BITS_PER_LONG = 64


class Memory(Protocol):
    """The program's memory. Both raise ``KvmError`` EFAULT."""

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write ``data``."""
        ...


@dataclass(frozen=True, slots=True)
class Argument:
    """The third argument of ``ioctl`` on the VM ``target``; ``fields`` of the structure there, if it is an address."""

    number: int
    memory: Memory
    target: Any
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def bitmap(pages: Iterable[int], npages: int) -> bytes:
    """A slot's dirty bitmap as the kernel copies it: whole longs, lowest page first."""
    bits = bytearray(-(-npages // BITS_PER_LONG) * BITS_PER_LONG // 8)
    for page in pages:
        bits[page >> 3] |= 1 << (page & 7)
    return bytes(bits)


def set_bits(data: bytes) -> list[int]:
    """The numbers of the bits that are set."""
    return [at * 8 + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1]
