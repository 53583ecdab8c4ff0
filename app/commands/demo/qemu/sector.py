"""The boot sector of the race. ``sector.S`` is its source; ``sector.hex`` is what binutils make of it.

    as --32 sector.S -o sector.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary sector.o -o sector

A test compares them, so that the demo needs no assembler.
"""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).with_name("sector.S")
LISTING = SOURCE.with_suffix(".hex")
SECTOR = 512
_TRANSACTIONS = slice(506, 510)


def boot_sector(transactions: int) -> bytes:
    """A disk's first sector that asks QEMU for so many memory transactions; below 2**32."""
    sector = bytearray.fromhex(LISTING.read_text()).ljust(_TRANSACTIONS.start, b"\0")
    return bytes(sector[: _TRANSACTIONS.start] + transactions.to_bytes(4, "little") + b"\x55\xaa")
