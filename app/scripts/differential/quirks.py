"""Where the emulator and a real /dev/kvm may differ, and why. Everything else is a bug of the emulator.

The real KVM of the reference recordings is nested: its vendor module shadows page tables and runs part of the
guest's code in KVM's software interpreter. Each entry looks at one difference and says whether it is that quirk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kickstand.core.uapi import InternalError
from kickstand.scripts.language.operations import WriteHost
from kickstand.scripts.language.parse import Operation


@dataclass(frozen=True, slots=True)
class Quirk:
    """``applies(operations up to and with the differing one, emulator's answer, device's answer)``."""

    name: str
    reason: str
    applies: Callable[[Sequence[Operation], dict[str, Any], dict[str, Any]], bool]


BIT_SCAN = re.compile("0fb[cd]")
ACCESS, SEGMENT, KERNEL_CODE = 8 + 5, 0x78, 0x18  # of the segment that the stories' gates name
LOW_HALF = 0xFFFF_FFFF
PIC_PORTS = frozenset((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1))


def _in_kernel_ports(operations: Sequence[Operation], emulator: dict[str, Any], _device: dict[str, Any]) -> bool:
    irqchip = any(step.op == "create_irqchip" for step in operations)
    return irqchip and emulator.get("exit_reason") == "IO" and emulator.get("port") in PIC_PORTS


def _unbacked(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    run = operations[-1].op in ("run", "finish_run")
    return run and emulator.get("errno") == "EFAULT" and device.get("exit_reason") in ("MMIO", "INTERNAL_ERROR")


def _no_memory(operations: Sequence[Operation], _emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    return operations[-1].op in ("run", "finish_run") and device.get("errno") == "ENOSPC"


def _frame_in_a_hole(_operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    delivery = emulator.get("suberror") == InternalError.DELIVERY_EV
    return delivery and device.get("exit_reason") == "SHUTDOWN"


def _nmi_behind_nmi(operations: Sequence[Operation], _emulator: dict[str, Any], _device: dict[str, Any]) -> bool:
    last = operations[-1]
    if last.op not in ("run", "finish_run", "get_regs"):
        return False
    mine = [step.op for step in operations[:-1] if getattr(step.args, "vcpu", None) == getattr(last.args, "vcpu", None)]
    return mine.count("nmi") > 1


def _interpreted(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    last = operations[-1]
    if last.op not in ("run", "finish_run") or emulator.get("exit_reason") == "INTERNAL_ERROR":
        return False
    vcpu = getattr(last.args, "vcpu", None)
    presets = [getattr(step.args, "preset", None) for step in operations if getattr(step.args, "vcpu", None) == vcpu]
    paging = next((preset for preset in reversed(presets) if preset is not None), None) == "long64"
    return device.get("suberror") == InternalError.EMULATION and not paging


def _scan_of_zero(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    mine, theirs = emulator.get("regs"), device.get("regs")
    code = "".join(step.args.hex.lower() for step in operations if isinstance(step.args, WriteHost))
    if not mine or not theirs or not BIT_SCAN.search(code):
        return False
    return all(mine[name] in (theirs[name], theirs[name] & LOW_HALF) for name in mine)


def _handler_unchecked(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    if emulator.get("exit_reason") != "SHUTDOWN" or device.get("exit_reason") == "SHUTDOWN":
        return False
    changes: list[dict[str, Any]] = [getattr(step.args, "changes", None) or {} for step in operations]
    tables = [change["gdt"] for change in changes if "gdt" in change]
    written = {step.args.offset: step.args.hex for step in operations if isinstance(step.args, WriteHost)}
    table = bytes.fromhex(written.get(tables[-1]["base"], "")) if tables else b""
    return len(table) > ACCESS and table[ACCESS] & SEGMENT != KERNEL_CODE


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "run-without-memory",
        "KVM_RUN with no slot ever made: the recording kernel answers ENOSPC, since its vendor module needs a page for "
        "the guest's tables; hardware virtualization runs into an internal error.",
        _no_memory,
    ),
    Quirk(
        "unbacked-slot",
        "An access to a slot without host memory is EFAULT on hardware; where the access itself is emulated, as on the "
        "recording machine, KVM takes the failed copy for a hole: KVM_EXIT_MMIO, or for a fetch "
        "KVM_EXIT_INTERNAL_ERROR.",
        _unbacked,
    ),
    Quirk(
        "pic-ports",
        "With an in-kernel irqchip KVM answers the ports of the two 8259 itself; the emulator's irqchip routes "
        "interrupts but has no such registers, so a guest that programs them stops with KVM_EXIT_IO.",
        _in_kernel_ports,
    ),
    Quirk(
        "frame-in-a-hole",
        "An exception whose frame would go to a hole: hardware reports a fault while it delivers the event, and KVM "
        "stops with KVM_INTERNAL_ERROR_DELIVERY_EV; where events are delivered in software, as on the recording "
        "machine, the failed write is taken for one more fault, and ends in a triple fault.",
        _frame_in_a_hole,
    ),
    Quirk(
        "interpreted",
        "An instruction that KVM's interpreter does not know (of the FPU, INT 3, ENTER with a level, one that is none) "
        "where the recording machine has to interpret the guest, which is all code without paging: it stops with "
        "KVM_INTERNAL_ERROR_EMULATION; hardware executes it or raises #UD.",
        _interpreted,
    ),
    Quirk(
        "scan-of-zero",
        "BSF or BSR of zero into a 32-bit register: Intel's manual leaves the destination undefined, hardware leaves "
        "all 64 bits as they were, Unicorn clears the upper half of a register that it leaves alone.",
        _scan_of_zero,
    ),
    Quirk(
        "nmi-behind-nmi",
        "An NMI that waits for the IRET of the one before: with an NMI window, as hardware has, it is delivered right "
        "behind that IRET; the recording machine's vendor module has no such window, so that it comes at the first "
        "entry after the guest's next exit, however many instructions later that is.",
        _nmi_behind_nmi,
    ),
    Quirk(
        "handler-unchecked",
        "A gate in ring 0 whose segment is not one of code, or of a lower privilege: #GP by the manuals of Intel and "
        "AMD, and so a triple fault where every gate names it; the recording machine's vendor module delivers events "
        "without these checks.",
        _handler_unchecked,
    ),
)


def explained(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> Quirk | None:
    """The quirk behind a difference, if it is one."""
    return next((quirk for quirk in QUIRKS if quirk.applies(operations, emulator, device)), None)
