"""Instructions that change where a guest runs and under which rules: vectors, far transfers, segments, controls.

Everything here leaves the guest in its mode with flat DS, ES and SS, so that a program can go on behind it.
"""

from __future__ import annotations

from kickstand.scripts.differential.code.wide import EAX, EBX, ECX, EDX, Wide, WideBuild

FIRST_SOFTWARE = 0x20  # vectors from here on return
SOFTWARE_VECTORS = 16
CODE_SELECTOR, DATA_SELECTOR = 8, 16
MSRS = (0x174, 0x175, 0x176, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102)
NO_MSR = 0x12345


def software_interrupt(e: Wide) -> bytes:
    """INT n and INTO; in protected modes KVM's interpreter has none of them."""
    if e.mode != "real":
        return b"\x90"
    number = FIRST_SOFTWARE + e.random.randrange(SOFTWARE_VECTORS)
    return e.random.choice((bytes([0xCD, number]), bytes([0xCD, number]), b"\xce"))


def undefined(e: Wide) -> bytes:
    """UD2, and LOCK where there is nothing to lock."""
    return e.random.choice(
        (b"\x0f\x0b", b"\xf0\x90", b"\xf0\x01\xc8", b"\xf0" + e.prefix(4, memory=True) + b"\x8b\x03")
    )


def interrupt_return(e: Wide) -> bytes:
    """IRET to the next instruction, in real mode, with new flags."""
    if e.mode != "real":
        return b"\x90"
    flags = 2 | e.random.getrandbits(12) & 0xCD5
    # push flags; push cs; call +0 (pushes where we are); add the way to the end to it; iret
    fix = b"\x89\xe5\x83\x46\x00\x08"  # mov bp, sp; add word [bp], 8
    return b"\x68" + flags.to_bytes(2, "little") + b"\x0e" + b"\xe8\0\0" + fix + b"\x90\xcf"


def far_transfer(e: Wide) -> bytes:
    """A far return to the next instruction, in real mode."""
    if e.mode != "real":
        return b"\x90"
    return b"\x0e" + b"\xe8\0\0" + b"\x89\xe5\x83\x46\x00\x08" + b"\x90\xcb"


def load_selector(e: Wide) -> bytes:
    """MOV to FS and GS and back; sometimes a selector that is none.

    The null selector in long mode only: translated code does not look at the limits of data segments.
    """
    segment = e.random.choice((4, 5))
    if e.mode == "real":
        value = e.random.getrandbits(12)
    else:
        null = 0 if e.long else DATA_SELECTOR
        value = e.random.choice((null, CODE_SELECTOR, DATA_SELECTOR, DATA_SELECTOR, DATA_SELECTOR | 3, 0x18, 0x4C))
    back = e.random.choice((b"", bytes([0x8C, 0xC0 | segment << 3 | EDX])))
    return e.load(EAX, value) + bytes([0x8E, 0xC0 | segment << 3 | EAX]) + back


def through_segment(e: Wide) -> bytes:
    """A load through FS or GS."""
    return bytes([e.random.choice((0x64, 0x65))]) + e.prefix(4, memory=True) + b"\x8b" + e.modrm(ECX)


def store_tables(e: Wide) -> bytes:
    """SGDT, SIDT, SMSW, SLDT, STR into the low memory."""
    address = 0x5000 + e.random.randrange(0x100)
    if e.mode == "real":
        modrm = bytes([0x06 | e.random.choice((0, 1, 4)) << 3]) + address.to_bytes(2, "little")
        return b"\x0f\x01" + modrm
    code = b"\x0f\x01" if e.chance(0.7) else b"\x0f\x00"
    field = e.random.choice((0, 1, 4) if code == b"\x0f\x01" else (0, 1))
    sib = b"\x25" if e.long else b""
    return code + bytes([(0x04 if e.long else 0x05) | field << 3]) + sib + address.to_bytes(4, "little")


def control_register(e: Wide) -> bytes:
    """MOV from and to control registers: CR0 keeps its mode, CR2 takes anything."""
    move = bytes([0x0F, 0x20, 0xC0 | e.random.choice((0, 2, 3, 4)) << 3 | EAX])
    if e.chance(0.5):
        return move
    if e.chance(0.5):
        return bytes([0x0F, 0x22, 0xC0 | 2 << 3 | ECX])
    flip = e.random.choice((1 << 16, 1 << 1, 1 << 5))  # WP, MP, NE
    return b"\x0f\x20\xc0" + e.prefix(4) + b"\x35" + flip.to_bytes(4, "little") + b"\x0f\x22\xc0"


def task_switched(e: Wide) -> bytes:
    """CLTS, INVLPG, WBINVD, and reading DR7."""
    return e.random.choice((b"\x0f\x06", e.far_address() + b"\x0f\x01" + e.modrm(7), b"\x0f\x09", b"\x0f\x21\xf8"))


def model_specific(e: Wide) -> bytes:
    """RDMSR and WRMSR: system-call entry points and bases are kept, an unknown one is #GP."""
    number = e.random.choice((*MSRS, NO_MSR))
    if e.chance(0.5) or number == 0xC0000080:  # noqa: PLR2004  EFER would change the mode
        return e.load(ECX, number) + b"\x0f\x32"
    high = e.random.choice((0, 0xFFFFFFFF))
    low = e.random.getrandbits(31) | (high & 1 << 31)
    return e.load(ECX, number) + e.load(EAX, low) + e.load(EDX, high) + b"\x0f\x30" + e.load(EBX, 0x20000)


SYSTEM: tuple[WideBuild, ...] = (
    software_interrupt, undefined, interrupt_return, far_transfer, load_selector, through_segment, store_tables,
    control_register, task_switched, model_specific,
)  # fmt: skip
