"""The encoder of the wide table: operands anywhere in the window of slots and holes, and across their edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kickstand.scripts.differential.code.encodings import PAGE, WINDOW_PAGES, Encoder, compare

EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI = range(8)
LOCK = b"\xf0"
WINDOW_END = WINDOW_PAGES * PAGE
EDGES = (0, 1, 3, 4, 8, 0x100, *(PAGE - n for n in (1, 2, 3, 4, 5, 6, 7, 8, 15, 16)))


@dataclass(frozen=True, slots=True)
class Wide(Encoder):
    """An encoder that knows more forms of operands. EBX holds the window's address, and stays."""

    @property
    def long(self) -> bool:
        return self.mode == "long64"

    def far_address(self) -> bytes:
        """Prefix for the window, which 16-bit addresses do not reach."""
        return b"\x67" if self.mode == "real" else b""

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def offset(self, room: int = 64) -> int:
        """An offset in the window with so many bytes behind it, often at the edge of a page."""
        page = self.random.randrange(WINDOW_PAGES) * PAGE
        inside = self.random.choice((*EDGES, self.random.randrange(PAGE)))
        return min(page + inside, WINDOW_END - room)

    def modrm(self, field: int) -> bytes:
        """A memory operand in the window: [ebx+disp32], or the same with an index of zero."""
        offset = self.offset()
        if self.chance(0.2):
            scale = self.random.randrange(4) << 6
            return bytes([0x84 | field << 3, scale | ESP << 3 | EBX]) + offset.to_bytes(4, "little")
        return bytes([0x80 | field << 3 | EBX]) + offset.to_bytes(4, "little")

    def aligned_modrm(self, field: int) -> bytes:
        """A memory operand at a multiple of 16."""
        return bytes([0x80 | field << 3 | EBX]) + (self.offset() & ~15).to_bytes(4, "little")

    def byte_or(self, size: int) -> int:
        """A register for an operand of this size; for bytes also AH, CH and DH."""
        if size == 1 and not self.long:
            return self.random.choice((0, 1, 2, 4, 5, 6))
        return self.random.choice((EAX, ECX, EDX)) if size == 1 else self.random.choice((EAX, ECX, EDX, EBP, ESI, EDI))

    def on_memory(self, size: int, opcode: bytes, field: int, *, lock: bool = False) -> bytes:
        """Prefixes, opcode and a memory operand."""
        return (LOCK if lock else b"") + self.prefix_before(size, opcode) + self.modrm(field)

    def prefix_before(self, size: int, opcode: bytes) -> bytes:
        return self.prefix(size, memory=True) + opcode

    def immediate(self, size: int) -> bytes:
        return self.random.randbytes(min(size, 4))


WideBuild = Callable[[Wide], bytes]


def opcode(code: int, size: int) -> bytes:
    """One-byte opcodes have the size in bit 0."""
    return bytes([code | (size > 1)])


def opcode2(code: int, size: int) -> bytes:
    return b"\x0f" + opcode(code, size)


def defined(e: Wide, *conditions: int) -> bytes:
    """SETcc keeps these flags in AL, CL; a comparison sets all of them."""
    kept = b"".join(bytes([0x0F, 0x90 | one, 0xC0 | register]) for register, one in enumerate(conditions))
    return kept + compare(e)
