"""What a CPU holds beside its general registers: what waits to be delivered, FPU, debug registers, controls."""

from __future__ import annotations

from random import Random
from struct import pack
from typing import Any

from kickstand.scripts.differential.asks.form import Question, ioctl, number, words
from kickstand.scripts.differential.story import Op, Steps, op
from kickstand.scripts.language.operations import DATA

_QUIET = {"exception": {"injected": 0}, "interrupt": {"injected": 0}, "nmi": {"injected": 0}, "flags": 0}
_LEGACY = 3  # components: x87 and SSE
_STATUS = 0x7F00  # without exceptions, whose summary the CPU makes itself when the guest is entered
_PAGING, _LONG = 1 << 31, {"cr4": 0x20, "efer": 0x501, "cr3": 0}
_DR6, _DR7 = 0xFFFF0FF0, 0x400
CR0 = (0x10, 0x11, 0x31, 0x10011, 0x80000011, 0x80000010, 0x20000010, 0x60000010, 0x110000010, 0xE0000011, 0)
OF_THIS_HOST = (11, 17, 18, 21, 22)  # bits of CR4 that the recording machine takes or refuses whatever CPUID says
CR4 = (*(1 << bit for bit in range(32) if bit not in OF_THIS_HOST), 0, 0x20, 0x2A0, 0x3F7, 1 << 33, 1 << 63)
EFER = (0, 1, 0x100, 0x400, 0x500, 0x501, 0xD01, 0x800, 0x1000, 2, 1 << 14, 1 << 13, 1 << 40)


def _bit(random: Random) -> int:
    return random.getrandbits(1)


def events(random: Random, vcpu: int) -> Steps:
    """What is set is there; then it is taken back, so that no guest meets it."""
    fields = {
        "exception": {
            "injected": _bit(random),
            "nr": random.choice((0, 2, 6, 13, 14, 31, 32)),
            "has_error_code": _bit(random),
            "pending": _bit(random),
            "error_code": number(random) & 0xFFFF,
        },
        "interrupt": {"injected": _bit(random), "nr": random.randrange(256), "soft": 0, "shadow": random.randrange(4)},
        "nmi": {"injected": _bit(random), "pending": _bit(random), "masked": _bit(random)},
        "flags": random.choice((0, 0, 1, 4, 5, 13, 1 << 10, 1 << 4)),
    }
    taken = yield ioctl("KVM_SET_VCPU_EVENTS", vcpu, fields=fields)
    if taken["ret"] == 0:  # else vectors are told that were delivered last, which software does more often than a CPU
        yield ioctl("KVM_GET_VCPU_EVENTS", vcpu)
    yield ioctl("KVM_SET_VCPU_EVENTS", vcpu, fields=_QUIET | {"flags": 13})


def debug_registers(random: Random, vcpu: int) -> Steps:
    addresses = [number(random) for _ in range(4)]
    dr6 = _DR6 | random.choice((0, 1, 0xF, 1 << 13, 1 << 14, 1 << 32))
    dr7 = _DR7 | random.choice((0, 1 << 8, 1 << 11, 1 << 32))
    yield ioctl("KVM_SET_DEBUGREGS", vcpu, hex=words(*addresses, dr6, dr7, random.choice((0, 0, 0, 1))))
    yield ioctl("KVM_GET_DEBUGREGS", vcpu)
    yield ioctl("KVM_SET_DEBUGREGS", vcpu, hex=words(0, 0, 0, 0, _DR6, _DR7, 0))


def _xsave(random: Random, components: int, control: int = 0x1F80, compacted: int = 0) -> str:
    legacy = pack(
        "<HHBxHQQII", 0x37F, random.getrandbits(16) & _STATUS, random.getrandbits(8), 0, 0, 0, control, 0xFFFF
    )
    legacy += b"".join(random.randbytes(10) + bytes(6) for _ in range(8)) + random.randbytes(256)
    return (legacy.ljust(512, b"\0") + pack("<2Q", components, compacted)).hex()


def fpu(random: Random, vcpu: int) -> Steps:
    """KVM_SET_FPU and KVM_GET_FPU.

    XSAVE first: the kernel copies the registers into an area whose header may say that they are as after reset, and
    then nothing of them gets to the guest. Here they do.
    """
    yield ioctl("KVM_SET_XSAVE", vcpu, hex=_xsave(random, _LEGACY))
    head = pack(
        "<HHBxHQQ", 0x37F, random.getrandbits(16) & _STATUS, random.getrandbits(8), random.getrandbits(11), 0, 0
    )
    stack = b"".join(random.randbytes(10) + bytes(6) for _ in range(8))
    data = stack + head + random.randbytes(256) + pack("<I", random.choice((0x1F80, 0x1F80, 0x9FC0, 0))) + bytes(4)
    yield ioctl("KVM_SET_FPU", vcpu, hex=data.hex())
    yield ioctl("KVM_GET_FPU", vcpu)


def xsave(random: Random, vcpu: int) -> Steps:
    """KVM_SET_XSAVE: what of it is there afterwards KVM_GET_FPU tells, without the host's other components.

    With one component only KVM_GET_FPU tells of the other what was there before, although the guest has it reset.
    """
    control = random.choice((0x1F80, 0x1F80, 0x9FC0, 1 << 16, 1 << 31))
    components = random.choice((0, 1, 2, 3, 3, 3, 1 << 9 | 3, 1 << 62))
    compacted = random.choice((0, 0, 0, 1 << 63))
    yield ioctl("KVM_SET_XSAVE", vcpu, hex=_xsave(random, components, control, compacted))
    yield ioctl("KVM_SET_XSAVE", vcpu, hex=_xsave(random, _LEGACY))
    yield ioctl("KVM_GET_FPU", vcpu)


def xcrs(random: Random, vcpu: int) -> Steps:
    value = random.choice((0, 1, 1, 2, 1 << 9, 1 << 62))
    head = pack("<2I", random.choice((1, 1, 0, 16, 17)), random.choice((0, 0, 1)))
    yield ioctl("KVM_SET_XCRS", vcpu, hex=(head + pack("<2IQ", random.choice((0, 0, 1)), 0, value)).hex())


def controls(random: Random, vcpu: int) -> Steps:
    """KVM_SET_SREGS of anything; then as it was."""
    before = yield ioctl("KVM_GET_SREGS", vcpu)
    changes: dict[str, Any] = {}
    for name, values in (("cr0", CR0), ("cr4", CR4), ("efer", EFER)):
        if random.random() < 0.5:  # noqa: PLR2004  a coin
            changes[name] = random.choice(values)
    if random.random() < 0.3:  # noqa: PLR2004
        changes[random.choice(("cr2", "cr3", "cr8"))] = number(random)
    if random.random() < 0.2:  # noqa: PLR2004
        changes["apic_base"] = 0xFEE00000 | random.choice((0, 0x100, 0x400, 0x800, 0xC00, 1, 1 << 50))
    if changes.get("cr0", 0) & _PAGING:
        changes |= _LONG  # paging without long mode is not kept by the recording machine's vendor module
    yield op("set_sregs", vcpu=vcpu, changes=changes)
    after = yield ioctl("KVM_GET_SREGS", vcpu)
    if after != before:
        yield _back(before, vcpu)


def _back(before: Any, vcpu: int) -> Op:
    return ioctl("KVM_SET_SREGS", vcpu, fields=dict(before["fields"]))


def segments(random: Random, vcpu: int) -> Steps:
    """Any segment is taken, and told as it was given."""
    before = yield ioctl("KVM_GET_SREGS", vcpu)
    name = random.choice(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"))
    field, values = random.choice((
        ("base", (0, 0x1000, 1 << 40, 1 << 63)), ("limit", (0, 0xFFFF, 0xFFFFF, 0xFFFFFFFF)),
        ("type", tuple(range(16))), ("dpl", (0, 1, 3)), ("db", (0, 1)), ("l", (0, 1)),
        ("g", (0, 1)), ("selector", (0, 8, 0xFFFF)),
    ))  # fmt: skip
    yield op("set_sregs", vcpu=vcpu, changes={name: {field: random.choice(values)}})
    yield ioctl("KVM_GET_SREGS", vcpu)
    yield _back(before, vcpu)


def sregs2(random: Random, vcpu: int) -> Steps:
    """KVM_SET_SREGS2 with what KVM_GET_SREGS2 has told, and with flags."""
    now = yield ioctl("KVM_GET_SREGS2", vcpu)
    yield ioctl("KVM_SET_SREGS2", vcpu, fields=dict(now["fields"]) | {"flags": random.choice((0, 0, 2, 1 << 40))})


def translated(random: Random, vcpu: int) -> Steps:
    address = random.choice((0, 0x1000, 0x20_0000, 0x1000_0000, 1 << 30, 1 << 39, 1 << 47, number(random)))
    yield ioctl("KVM_TRANSLATE", vcpu, fields={"linear_address": address})


def attribute(random: Random, vcpu: int) -> Steps:
    fields = {"group": random.choice((0, 1)), "attr": random.choice((0, 1)), "addr": DATA}
    yield ioctl(random.choice(("KVM_HAS_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR")), vcpu, fields=fields)


def debugged(random: Random, vcpu: int) -> Steps:
    """KVM_SET_GUEST_DEBUG, without effect on a guest."""
    yield ioctl("KVM_SET_GUEST_DEBUG", vcpu, fields={"control": random.choice((0, 0, 1, 2, 1 << 16, 1 << 20))})
    yield ioctl("KVM_SET_GUEST_DEBUG", vcpu, fields={"control": 0})


def slept(random: Random, vcpu: int) -> Steps:
    yield op("set_mp_state", vcpu=vcpu, mp_state=random.choice(("HALTED", "RUNNABLE", 5, 6, 10, 11, 1 << 31)))
    yield op("get_mp_state", vcpu=vcpu)
    yield op("set_mp_state", vcpu=vcpu, mp_state="RUNNABLE")


def others(random: Random, vcpu: int) -> Steps:
    yield random.choice((
        ioctl("KVM_KVMCLOCK_CTRL", vcpu),
        ioctl("KVM_ENABLE_CAP", vcpu, fields={"cap": random.choice((190, 168)), "flags": random.choice((0, 1))}),
        ioctl("KVM_TPR_ACCESS_REPORTING", vcpu, fields={"enabled": 0, "flags": random.choice((0, 1))}),
        ioctl("KVM_SET_VAPIC_ADDR", vcpu, fields={"vapic_addr": random.choice((0, 0x5000, 1 << 60))}),
        op("interrupt", vcpu=vcpu, vector=random.choice((256, 1 << 31))),
    ))  # fmt: skip


QUESTIONS: tuple[Question, ...] = (
    events, debug_registers, fpu, xsave, xcrs, controls, controls, segments, sregs2, translated, attribute, debugged,
    slept, others,
)  # fmt: skip
