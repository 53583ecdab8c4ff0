"""Trace event JSON: a thread per vCPU, its states as slices, everything else as instants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from kickstand.core.trace import Tracepoint
from kickstand.runtime.events import Record, to_json
from kickstand.traces.recording import Recording

US = 1_000  # nanoseconds
VM_TRACK = 1_000_000  # the thread number of what concerns the whole VM


def chrome(recording: Recording) -> bytes:
    """Encode a recording; times in microseconds, as the format has them."""
    head = to_json({"displayTimeUnit": "ns", "otherData": {"epoch": recording.epoch}}).removesuffix("}")
    # One by one: the encoder lets nobody else run before it has come to its end.
    events = ",".join(map(to_json, chain(_names(recording), _slices(recording), map(_instant, _others(recording)))))
    return f'{head},"traceEvents":[{events}]}}\n'.encode()


def _names(recording: Recording) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"VM {recording.vm}"}}
    for tid, title in (*((vcpu, f"vCPU {vcpu}") for vcpu in recording.vcpus), (VM_TRACK, "VM")):
        yield {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": title}}


def _slices(recording: Recording) -> Iterator[dict[str, Any]]:
    """A vCPU's states; the first and the last reach to the ends of the recording."""
    since: dict[int, tuple[int, object]] = {}
    for record in recording.records:
        if record.name != Tracepoint.VCPU_STATE or record.vcpu is None:
            continue
        start, state = since.get(record.vcpu, (recording.begin_ns, record.fields.get("old")))
        yield _slice(record.vcpu, state, start, record.t_ns)
        since[record.vcpu] = record.t_ns, record.fields.get("state")
    for vcpu, (start, state) in sorted(since.items()):
        yield _slice(vcpu, state, start, recording.end_ns)


def _slice(vcpu: int, state: object, start_ns: int, end_ns: int) -> dict[str, Any]:
    times = {"ts": start_ns / US, "dur": (end_ns - start_ns) / US}
    return {"ph": "X", "pid": 1, "tid": vcpu, "cat": "state", "name": state, **times}


def _others(recording: Recording) -> Iterator[Record]:
    return (record for record in recording.records if record.name != Tracepoint.VCPU_STATE)


def _instant(record: Record) -> dict[str, Any]:
    scope, tid = ("p", VM_TRACK) if record.vcpu is None else ("t", record.vcpu)
    args = {"seq": record.seq, **record.fields}
    place = {"ph": "i", "s": scope, "pid": 1, "tid": tid, "cat": "kvm"}
    return {**place, "name": record.name, "ts": record.t_ns / US, "args": args}
