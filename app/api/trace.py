"""GET /vm/trace: the recorded past as a file that other tools open.

What is to be told is looked at on the event loop; the file is written in a thread, because a full ring takes a third
of a second and nobody is to wait for that.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from app.api.context import TheMachine
from app.api.operations import VM, Media, Operations
from app.core.errors import KvmError
from app.core.trace import Event
from app.journal.perfetto import perfetto as encode_perfetto
from app.runtime.events import Record, to_json
from app.runtime.machine import Machine

LARGEST = 1_000_000
PORTION = 4_096  # events looked at in one turn of the loop
US = 1_000  # nanoseconds
S = 1_000_000_000
VM_TRACK = 1_000_000  # the thread number of what concerns the whole VM
router = Operations("trace", *VM)


class Format(StrEnum):
    """Which tool is to open the file."""

    PERFETTO = "perfetto"
    CHROME = "chrome"
    FTRACE = "ftrace"
    SCRIPT = "script"


TheFormat = Annotated[Format, Query(alias="format", description="perfetto, chrome (trace event JSON), ftrace, script.")]
Limit = Annotated[int, Query(ge=1, le=LARGEST, description="Only the newest events.")]
FILE = Media("The trace.", ("application/json", "application/x-ndjson", "text/plain", "application/octet-stream"))


@router.get("/trace", answer=FILE)
async def get_trace(machine: TheMachine, fmt: TheFormat = Format.CHROME, limit: Limit = LARGEST) -> Response:
    """Export what is still recorded of one VM."""
    write, media_type, suffix = await EXPORTS[fmt](machine, limit)
    headers = {"Content-Disposition": f'attachment; filename="{machine.id}.{suffix}"'}
    return Response(await asyncio.to_thread(write), 200, headers, media_type)


Export = tuple[Callable[[], bytes], str, str]  # what writes the file, its media type, its suffix


async def _recorded(machine: Machine, limit: int) -> list[Record]:
    """The newest events of one VM, looked at a portion a turn of the loop."""
    log = machine.log
    seq, end = 0, log.seq
    found: list[Record] = []
    while seq < end:
        records, _ = log.since(seq, PORTION)
        seq = records[-1].seq
        found += [record for record in records if record.vm == machine.id]
        await asyncio.sleep(0)
    return found[-limit:]


# -- trace event JSON ----------------------------------------------------------------------------------------


async def chrome(machine: Machine, limit: int) -> Export:
    """Trace event JSON: a thread per vCPU, its states as slices, everything else as instants."""
    records = await _recorded(machine, limit)
    write = partial(_chrome, machine.id, machine.log.epoch, sorted(machine.vm.vcpus), records)
    return write, "application/json", "json"


def _chrome(name: str, epoch: str, vcpus: list[int], records: list[Record]) -> bytes:
    head = to_json({"displayTimeUnit": "ns", "otherData": {"epoch": epoch}}).removesuffix("}")
    # One by one: the encoder lets nobody else run before it has come to its end.
    events = ",".join(map(to_json, chain(_names(name, vcpus), _slices(records), _instants(records))))
    return f'{head},"traceEvents":[{events}]}}'.encode()


def _names(name: str, vcpus: list[int]) -> Iterable[dict[str, Any]]:
    yield {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"VM {name}"}}
    for tid, title in (*((vcpu, f"vCPU {vcpu}") for vcpu in vcpus), (VM_TRACK, "VM")):
        yield {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": title}}


def _slices(records: list[Record]) -> list[dict[str, Any]]:
    """A vCPU's states; the first and the last reach to the ends of the recording."""
    found: list[dict[str, Any]] = []
    since: dict[int, tuple[int, object]] = {}
    begin = records[0].t_ns if records else 0
    for record in records:
        if record.name != Event.VCPU_STATE.value or record.vcpu is None:
            continue
        start, state = since.get(record.vcpu, (begin, record.fields.get("old")))
        found.append(_slice(record.vcpu, state, start, record.t_ns))
        since[record.vcpu] = record.t_ns, record.fields.get("state")
    end = records[-1].t_ns if records else 0
    return found + [_slice(vcpu, state, start, end) for vcpu, (start, state) in sorted(since.items())]


def _slice(vcpu: int, state: object, start: int, end: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 1,
        "tid": vcpu,
        "cat": "state",
        "name": state,
        "ts": start / US,
        "dur": (end - start) / US,
    }


def _instants(records: list[Record]) -> list[dict[str, Any]]:
    return [
        {
            "ph": "i",
            "s": "t" if record.vcpu is not None else "p",
            "pid": 1,
            "tid": VM_TRACK if record.vcpu is None else record.vcpu,
            "cat": "kvm",
            "name": record.name,
            "ts": record.t_ns / US,
            "args": {"seq": record.seq, **record.fields},
        }
        for record in records
        if record.name != Event.VCPU_STATE.value
    ]


# -- ftrace text ---------------------------------------------------------------------------------------------

FTRACE_HEAD = """# tracer: nop
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


async def ftrace(machine: Machine, limit: int) -> Export:
    """The text of ``trace_pipe``; the kernel's own events in the kernel's own format."""
    write = partial(_ftrace, max(1, len(machine.vm.vcpus)), await _recorded(machine, limit))
    return write, "text/plain; charset=utf-8", "ftrace.txt"


def _ftrace(cpus: int, records: list[Record]) -> bytes:
    return (FTRACE_HEAD.format(kept=len(records), cpus=cpus) + "".join(map(_line, records))).encode()


def _line(record: Record) -> str:
    vcpu = record.vcpu
    comm, pid, cpu = ("VMM", 1, 0) if vcpu is None else (f"CPU {vcpu}/KVM", 1000 + vcpu, vcpu)
    seconds, rest = divmod(record.t_ns, S)
    write = FTRACE.get(record.name, _plain)
    text = write(vcpu or 0, record.fields)
    return f"{comm:>16}-{pid:<7} [{cpu:03}] ..... {seconds:5}.{rest // US:06}: {record.name}: {text}\n"


def _plain(_vcpu: int, fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _userspace_exit(_vcpu: int, fields: Mapping[str, Any]) -> str:
    failed = int(fields.get("errno", 0))
    if failed:
        return f"reason {'restart' if failed == errno.EINTR else 'error'} ({failed})"
    return f"reason {fields.get('reason')} (0)"


def _hex(value: object) -> str:
    """Bytes in memory order (hex digits) as the number the kernel prints."""
    return hex(int.from_bytes(bytes.fromhex(str(value)), "little"))


FTRACE: dict[str, Callable[[int, Mapping[str, Any]], str]] = {
    "kvm_entry": lambda vcpu, fields: f"vcpu {vcpu}, rip {fields.get('rip', '0x0')}",
    "kvm_exit": lambda vcpu, fields: (
        f"vcpu {vcpu} reason {fields.get('exit_reason')} rip {fields.get('rip', '0x0')} "
        "info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000"
    ),
    "kvm_userspace_exit": _userspace_exit,
    "kvm_vcpu_wakeup": lambda _vcpu, fields: (
        f"{'wait' if fields.get('waited') else 'poll'} time {fields.get('ns', 0)} ns, "
        f"polling {'valid' if fields.get('valid') else 'invalid'}"
    ),
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


# -- made elsewhere --------------------------------------------------------------------------------------------


async def perfetto(machine: Machine, limit: int) -> Export:
    """Perfetto's own format. EOPNOTSUPP, when it is written: its encoder is not installed."""
    write = partial(encode_perfetto, machine.id, sorted(machine.vm.vcpus), await _recorded(machine, limit))
    return write, "application/octet-stream", "pftrace"


async def script(machine: Machine, _limit: int) -> Export:
    """The ioctls as a script that replays. EOPNOTSUPP: nothing here can write scripts."""
    try:
        module = importlib.import_module("app.scripts.export")
    except ModuleNotFoundError as error:
        raise KvmError(
            errno.EOPNOTSUPP, "trace", f"this build writes no scripts: {error.name} is missing", field="format"
        ) from error
    return module.exporter(machine), "application/x-ndjson", "jsonl"


EXPORTS = {Format.PERFETTO: perfetto, Format.CHROME: chrome, Format.FTRACE: ftrace, Format.SCRIPT: script}
