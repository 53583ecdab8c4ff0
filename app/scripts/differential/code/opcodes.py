"""The wide table: one builder for each kind of instruction that KVM can emulate, most of them on memory.

Operands lie anywhere in the window: in RAM, in holes, in readonly slots, and across their edges. What the manuals leave
undefined never reaches a register that is compared: ``defined`` keeps the flags an instruction defines in bytes and
sets the others.
"""

from __future__ import annotations

from kickstand.scripts.differential.code.encodings import WINDOW, compare
from kickstand.scripts.differential.code.wide import (
    EAX,
    EBP,
    ECX,
    EDI,
    EDX,
    ESI,
    Wide,
    WideBuild,
    defined,
    opcode,
    opcode2,
)

CARRY, ZERO, OVERFLOW = 2, 4, 0  # condition codes
CMP = 7
ALIGNED_VECTORS = tuple(map(bytes.fromhex, ["0f28", "0f29", "0f2b", "660f6f", "660f7f", "660fe7"]))
UNALIGNED_VECTORS = tuple(map(bytes.fromhex, ["0f10", "0f11", "660f10", "660f11", "f30f6f", "f30f7f", "0f6f", "0f7f"]))


# -- arithmetic ----------------------------------------------------------------------------------------------


def alu(e: Wide) -> bytes:
    """ADD to CMP, to memory and from it; LOCK on those that write."""
    size, operation, inward = e.size(), e.random.randrange(8), e.chance(0.4)
    lock = not inward and operation != CMP and e.chance(0.2)
    return e.on_memory(size, opcode(operation << 3 | inward << 1, size), e.byte_or(size), lock=lock)


def alu_immediate(e: Wide) -> bytes:
    size, operation = e.size(), e.random.randrange(8)
    if size > 1 and e.chance(0.5):
        return e.on_memory(size, b"\x83", operation) + e.random.randbytes(1)
    return e.on_memory(size, opcode(0x80, size), operation) + e.immediate(size)


def alu_accumulator(e: Wide) -> bytes:
    size = e.size()
    return e.prefix(size) + opcode(e.random.randrange(8) << 3 | 4, size) + e.immediate(size)


def unary(e: Wide) -> bytes:
    """INC, DEC, NOT, NEG."""
    size = e.size()
    code, field = e.random.choice(((0xFE, 0), (0xFE, 1), (0xF6, 2), (0xF6, 3)))
    return e.on_memory(size, opcode(code, size), field, lock=e.chance(0.2))


def test_memory(e: Wide) -> bytes:
    size = e.size()
    if e.chance(0.5):
        return e.on_memory(size, opcode(0xF6, size), 0) + e.immediate(size)
    return e.on_memory(size, opcode(0x84, size), e.byte_or(size))


def multiply(e: Wide) -> bytes:
    """MUL, IMUL in all their forms."""
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    any_size = e.size()
    code = e.random.choice(
        (
            e.on_memory(size, b"\x0f\xaf", e.byte_or(size)),
            e.on_memory(size, b"\x69", e.byte_or(size)) + e.immediate(size),
            e.on_memory(size, b"\x6b", e.byte_or(size)) + e.random.randbytes(1),
            e.on_memory(any_size, opcode(0xF6, any_size), e.random.choice((4, 5))),
        )
    )
    return code + defined(e, CARRY, OVERFLOW) if e.chance(0.3) else code + compare(e)


def divide(e: Wide) -> bytes:
    """DIV, IDIV: often an overflow, which is #DE."""
    size = e.size()
    code = e.on_memory(size, opcode(0xF6, size), e.random.choice((6, 7)))
    setup = e.load(EDX, e.random.randrange(4)) if e.chance(0.7) else b""
    return setup + code + compare(e)


def shift(e: Wide) -> bytes:
    """ROL to SAR by one, by CL, by a constant."""
    size, field = e.size(), e.random.choice((0, 1, 2, 3, 4, 5, 7))
    return e.random.choice(
        (
            e.on_memory(size, opcode(0xD0, size), field) + defined(e, CARRY, OVERFLOW),
            e.on_memory(size, opcode(0xD2, size), field) + compare(e),
            e.on_memory(size, opcode(0xC0, size), field) + bytes([e.random.randrange(1, 8)]) + defined(e, CARRY),
        )
    )


def double_shift(e: Wide) -> bytes:
    """SHLD, SHRD; counts beyond the operand are undefined."""
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    code = e.on_memory(size, bytes([0x0F, e.random.choice((0xA4, 0xAC))]), e.byte_or(size))
    return code + bytes([e.random.randrange(1, 16)]) + defined(e, CARRY)


def bits(e: Wide) -> bytes:
    """BT, BTS, BTR, BTC: a bit number in a register reaches beyond the operand."""
    size, operation = e.random.choice((2, 4, 8) if e.long else (2, 4)), e.random.randrange(4)
    lock = operation > 0 and e.chance(0.2)
    if e.chance(0.5):
        code = e.on_memory(size, b"\x0f\xba", 4 + operation, lock=lock) + e.random.randbytes(1)
        return code + defined(e, CARRY)
    number = e.random.randrange(-300, 300)
    setup = e.load(ECX, number & 0xFFFFFFFF)
    return setup + e.on_memory(size, bytes([0x0F, 0xA3 | operation << 3]), ECX, lock=lock) + defined(e, CARRY)


def scan_bits(e: Wide) -> bytes:
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    return e.on_memory(size, bytes([0x0F, e.random.choice((0xBC, 0xBD))]), ESI) + defined(e, ZERO)


def decimal(e: Wide) -> bytes:
    """AAM, AAD, SALC, XLAT and the like, where the mode has them."""
    if e.long:
        return e.random.choice((b"\x98", b"\x99", b"\x48\x98", b"\x48\x99", b"\x66\x98", b"\x66\x99"))
    code = e.random.choice(
        (b"\xd4" + e.random.randbytes(1), b"\xd5" + e.random.randbytes(1), b"\xd6", b"\x98", b"\x99")
    )
    return code + compare(e)


def flag_bits(e: Wide) -> bytes:
    return e.random.choice((b"\xf5", b"\xf8", b"\xf9", b"\xfc", b"\xfd", b"\xfa", b"\xfb\x90", b"\x9f", b"\x9e"))


# -- moves ---------------------------------------------------------------------------------------------------


def load_memory(e: Wide) -> bytes:
    size = e.size()
    return e.on_memory(size, opcode(0x8A, size), e.byte_or(size))


def store_memory(e: Wide) -> bytes:
    size = e.size()
    if e.chance(0.3):
        return e.on_memory(size, opcode(0xC6, size), 0) + e.immediate(size)
    return e.on_memory(size, opcode(0x88, size), e.byte_or(size))


def widen(e: Wide) -> bytes:
    """MOVZX, MOVSX, MOVSXD."""
    if e.long and e.chance(0.2):
        return e.on_memory(8, b"\x63", e.byte_or(8))
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    return e.on_memory(size, bytes([0x0F, e.random.choice((0xB6, 0xB7, 0xBE, 0xBF))]), e.byte_or(size))


def absolute(e: Wide) -> bytes:
    """MOV between the accumulator and an absolute address; in long mode it has 64 bits."""
    size = e.size()
    address = WINDOW + e.offset()
    prefix = e.prefix(size, memory=True)
    return prefix + opcode(e.random.choice((0xA0, 0xA2)), size) + address.to_bytes(8 if e.long else 4, "little")


def exchange(e: Wide) -> bytes:
    size = e.size()
    return e.on_memory(size, opcode(0x86, size), e.byte_or(size), lock=e.chance(0.2))


def exchange_add(e: Wide) -> bytes:
    size = e.size()
    return e.on_memory(size, opcode2(0xC0, size), e.byte_or(size), lock=e.chance(0.3))


def compare_exchange(e: Wide) -> bytes:
    size = e.size()
    return e.on_memory(size, opcode2(0xB0, size), e.byte_or(size), lock=e.chance(0.3))


def compare_exchange_pair(e: Wide) -> bytes:
    """CMPXCHG8B; EBX is part of its operand, which is why it comes out of the window unchanged only by luck."""
    return e.on_memory(4, b"\x0f\xc7", 1, lock=e.chance(0.3))


def set_condition(e: Wide) -> bytes:
    return e.on_memory(1, bytes([0x0F, 0x90 | e.random.randrange(16)]), 0)


def move_conditionally(e: Wide) -> bytes:
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    return e.on_memory(size, bytes([0x0F, 0x40 | e.random.randrange(16)]), e.byte_or(size))


def store_around_cache(e: Wide) -> bytes:
    """MOVNTI."""
    return e.on_memory(e.random.choice((4, 8) if e.long else (4,)), b"\x0f\xc3", e.byte_or(4))


def translate(e: Wide) -> bytes:
    """XLAT: EBX with AL on top."""
    return e.prefix(4, memory=True)[:1] * (e.mode == "real") + b"\xd7"


def address_of(e: Wide) -> bytes:
    size = e.random.choice((2, 4, 8) if e.long else (2, 4))
    return e.on_memory(size, b"\x8d", e.byte_or(size))


def swap_bytes(e: Wide) -> bytes:
    register = e.random.choice((EAX, ECX, EDX, EBP, ESI, EDI))
    return e.prefix(e.random.choice((4, 8) if e.long else (4,))) + bytes([0x0F, 0xC8 | register])


# -- stack ---------------------------------------------------------------------------------------------------


def stack_size(e: Wide) -> bytes:
    """Prefix for a push: 16 bits, or what the mode has."""
    return e.random.choice((b"", b"", b"\x66"))


def push(e: Wide) -> bytes:
    return e.random.choice(
        (
            stack_size(e) + bytes([0x50 | e.random.choice((0, 1, 2, 4, 5, 6, 7))]),
            stack_size(e) + b"\x6a" + e.random.randbytes(1),
            e.prefix(4) * (not e.long) + b"\x68" + e.random.randbytes(4),
            stack_size(e) + e.far_address() + b"\xff" + e.modrm(6),
        )
    )


def pop(e: Wide) -> bytes:
    address = e.far_address()
    if e.chance(0.5):
        return stack_size(e) + bytes([0x58 | e.random.choice((0, 1, 2, 5, 6, 7))])
    return stack_size(e) + address + b"\x8f" + e.modrm(0)


def push_all(e: Wide) -> bytes:
    """PUSHA, PUSHF, ENTER, LEAVE; not POPA, which KVM's interpreter begins again for each read of a device."""
    enter = b"\xc8" + e.random.randbytes(1) + b"\0\0"
    if e.chance(0.3):
        return enter  # KVM's interpreter pushes the stack's width, whatever the operand size
    return stack_size(e) + e.random.choice((b"\x9c", b"\xc9") if e.long else (b"\x60", b"\x9c", b"\xc9"))


def call(e: Wide) -> bytes:
    """CALL to the next instruction: a push."""
    return b"\xe8\0\0" if e.mode == "real" else b"\xe8\0\0\0\0"


def save_selector(e: Wide) -> bytes:
    """MOV from a segment register, PUSH of one."""
    if e.chance(0.5):
        size = e.random.choice((2, 4))
        return e.on_memory(size, b"\x8c", e.random.randrange(6))
    codes = (b"\x0f\xa0", b"\x0f\xa8") if e.long else (b"\x06", b"\x0e", b"\x16", b"\x1e", b"\x0f\xa0", b"\x0f\xa8")
    return stack_size(e) + e.random.choice(codes)


def load_far(e: Wide) -> bytes:
    """LES, LFS, LGS in real mode, where every selector is one, and no other operand uses these segments."""
    code = e.random.choice((b"\xc4", b"\x0f\xb4", b"\x0f\xb5"))
    if e.mode != "real":
        return b"\x90"
    back = b"\x31\xc0\x8e\xc0"  # XOR ax, ax; MOV es, ax: strings need it
    return e.on_memory(2, code, e.random.choice((ECX, EDX, EBP))) + back


# -- strings -------------------------------------------------------------------------------------------------


def string(e: Wide) -> bytes:
    """Every string instruction, repeated or not, in either direction, on addresses of 32 or 64 bits."""
    size = e.random.choice((1, 2, 4, 8) if e.long else (1, 2, 4))
    code = e.random.choice((0xA4, 0xA6, 0xAA, 0xAC, 0xAE, 0x6C, 0x6E))
    if code in (0x6C, 0x6E):
        size = min(size, 4)
    repeat = e.random.choice((b"", b"\xf3", b"\xf3", b"\xf2" if code in (0xA6, 0xAE) else b"\xf3"))
    source, target = (WINDOW + e.offset(96) for _ in range(2))
    setup = e.load(ESI, source) + e.load(EDI, target) + e.load(EDX, 0x3F8)
    if repeat:
        setup += e.load(ECX, e.random.choice((0, 1, 2, 3, 5, 9, 17)))
    direction = e.random.choice((b"\xfc", b"\xfc", b"\xfd"))
    address = b"\x67" if e.long and e.chance(0.3) else b""
    return setup + direction + repeat + address + e.prefix_before(size, opcode(code, size))


# -- ports ---------------------------------------------------------------------------------------------------


def port(e: Wide) -> bytes:
    size, inward = e.random.choice((1, 2, 4)), e.chance(0.5)
    number = e.random.randrange(0x10, 0xF0)
    if e.chance(0.5):
        return e.prefix(size) + opcode(0xE4 if inward else 0xE6, size) + bytes([number])
    return e.load(EDX, e.random.randrange(0x100, 0x10000)) + e.prefix(size) + opcode(0xEC if inward else 0xEE, size)


# -- flow ----------------------------------------------------------------------------------------------------


def branch(e: Wide) -> bytes:
    """Jcc, LOOPcc, JCXZ over one instruction."""
    body = e.prefix(4) + b"\x83\xc0\x01"
    code = e.random.choice((0x70 | e.random.randrange(16), 0xE0, 0xE1, 0xE2, 0xE3))
    return bytes([code, len(body)]) + body


# -- vectors -------------------------------------------------------------------------------------------------


def vector(e: Wide) -> bytes:
    """Moves of 16 and 8 bytes: MOVUPS, MOVDQU, MOVQ of MMX, and those that must be aligned, which they are here.

    Translated code does not look at the alignment of what lies in RAM.
    """
    address = e.far_address()
    register = e.random.randrange(8)
    if e.chance(0.5):
        return address + e.random.choice(UNALIGNED_VECTORS) + e.modrm(register)
    return address + e.random.choice(ALIGNED_VECTORS) + e.aligned_modrm(register)


def control_word(e: Wide) -> bytes:
    """FNSTCW and FNSTSW to memory."""
    address = e.far_address()
    return address + e.random.choice((b"\xd9", b"\xdd")) + e.modrm(7)


def no_operation(e: Wide) -> bytes:
    """What KVM takes for a NOP."""
    address = e.far_address()
    return address + e.random.choice((b"\x0f\x1f", b"\x0f\x18", b"\x0f\x0d")) + e.modrm(0)


BUILDERS: tuple[WideBuild, ...] = (
    alu, alu, alu_immediate, alu_accumulator, unary, test_memory, multiply, divide, shift, double_shift, bits,
    scan_bits,
    decimal, flag_bits,
    load_memory, store_memory, widen, absolute, exchange, exchange_add, compare_exchange,
    compare_exchange_pair, set_condition, move_conditionally, store_around_cache, translate, address_of, swap_bytes,
    push, pop, push_all, call, save_selector, load_far, string, string, port, branch,
    vector, control_word, no_operation,
)  # fmt: skip
