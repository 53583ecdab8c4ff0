"""The text of ``trace_pipe``: the kernel's own events in the kernel's own format, ours beside them.

What the kernel prints and an emulator does not know (RIP at an exit, how long a sleep took) is left out: a zero there
would be read as a measurement. Source: the formats of ``include/trace/events/kvm.h`` and ``arch/x86/kvm/trace.h``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from kickstand.core.uapi import ExitReason
from kickstand.runtime.events import Record
from kickstand.traces.recording import Recording

US, S = 1_000, 1_000_000_000  # nanoseconds
HEAD = """# tracer: nop
#
# entries-in-buffer/entries-written: {kept}/{kept}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
VMX_REASONS = {  # how VMX names what made the guest leave
    "io": "IO_INSTRUCTION",
    "mmio": "EPT_VIOLATION",
    "retry": "EPT_VIOLATION",
    "fault": "EPT_VIOLATION",
    "window": "INTERRUPT_WINDOW",
    "hlt": "HLT",
    "shutdown": "TRIPLE_FAULT",
    "interrupted": "EXTERNAL_INTERRUPT",
}


def ftrace(recording: Recording) -> bytes:
    """Encode a recording; times in seconds with six digits, as the kernel has them."""
    head = HEAD.format(kept=len(recording.records), cpus=max(1, len(recording.vcpus)))
    return (head + "".join(map(_line, recording.records))).encode()


def _line(record: Record) -> str:
    vcpu = record.vcpu
    comm, pid, cpu = ("VMM", 1, 0) if vcpu is None else (f"CPU {vcpu}/KVM", 1000 + vcpu, vcpu)
    seconds, rest = divmod(record.t_ns, S)
    text = KERNEL.get(record.name, _plain)(cpu, record.fields)
    return f"{comm:>16}-{pid:<7} [{cpu:03}] ..... {seconds:5}.{rest // US:06}: {record.name}: {text}\n"


def _plain(_vcpu: int, fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _exit(vcpu: int, fields: Mapping[str, Any]) -> str:
    reason = str(fields.get("exit_reason"))
    return f"vcpu {vcpu} reason {VMX_REASONS.get(reason, reason.upper())}{_rip(fields, ' ')}"


def _rip(fields: Mapping[str, Any], before: str) -> str:
    return f"{before}rip {fields['rip']}" if "rip" in fields else ""


def _userspace_exit(_vcpu: int, fields: Mapping[str, Any]) -> str:
    if failed := int(fields.get("errno", 0)):
        return f"reason {'restart' if failed == errno.EINTR else 'error'} ({failed})"
    name = str(fields.get("reason"))
    return f"reason {name} ({ExitReason[name.removeprefix('KVM_EXIT_')]:d})"


def _wakeup(_vcpu: int, fields: Mapping[str, Any]) -> str:
    took = f" time {fields['ns']} ns" if "ns" in fields else ""
    return (
        f"{'wait' if fields.get('waited') else 'poll'}{took}, polling {'valid' if fields.get('valid') else 'invalid'}"
    )


def _hex(value: object) -> str:
    """Bytes in memory order (hex digits) as the number the kernel prints."""
    return hex(int.from_bytes(bytes.fromhex(str(value)), "little"))


KERNEL: dict[str, Callable[[int, Mapping[str, Any]], str]] = {
    "kvm_entry": lambda vcpu, fields: f"vcpu {vcpu}{_rip(fields, ', ')}",
    "kvm_exit": _exit,
    "kvm_userspace_exit": _userspace_exit,
    "kvm_vcpu_wakeup": _wakeup,
    "kvm_mmio": lambda _vcpu, fields: (
        f"mmio {fields['type']} len {fields['len']} gpa {fields['gpa']} val {_hex(fields['val'])}"
    ),
    "kvm_pio": lambda _vcpu, fields: (
        f"pio_{'write' if fields['rw'] == 'out' else 'read'} at {fields['port']:#x} "
        f"size {fields['size']} count {fields['count']} val {_hex(fields['val'])} "
    ),
    "kvm_inj_virq": lambda _vcpu, fields: f"IRQ {fields['vector']:#x}",
    "kvm_set_irq": lambda _vcpu, fields: f"gsi {fields['gsi']} level {fields['level']} source 0",
    "kvm_msi_set_irq": lambda _vcpu, fields: (
        f"dst {int(fields['address']) >> 12 & 0xFF:x} vec {int(fields['data']) & 0xFF} (Fixed|physical|edge)"
    ),
}
"""Formats of tracepoints by their names: (vCPU, fields) to what follows the name."""
