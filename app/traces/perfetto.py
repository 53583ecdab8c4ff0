"""A recording as Perfetto's own format (TrackEvent), for ui.perfetto.dev and ``trace_processor``.

The VM is a process, each vCPU a thread whose states are slices; kicks and the windows they open are slices of tracks of
their own, and an arrow goes from a kick to every KVM_RUN that it ended. The ``perfetto`` package encodes it; it is
loaded only when it is asked for.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from kickstand.core.trace import Tracepoint
from kickstand.runtime.events import Record
from kickstand.traces.recording import Recording

SEQUENCE = 1
PID = 1
VM, KICK, WINDOW, FIRST_VCPU = 1, 2, 3, 16  # tracks


def perfetto(recording: Recording) -> bytes:
    """Encode a recording. The encoder is loaded now: it takes a tenth of a second, and most servers never need it."""
    builder = importlib.import_module("perfetto.trace_builder.proto_builder").TraceProtoBuilder()
    types = importlib.import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2").TrackEvent
    return _Writer(builder, types, recording.vm, recording.vcpus).write(recording)


class _Writer:
    def __init__(self, builder: Any, types: Any, name: str, vcpus: Sequence[int]) -> None:
        self.builder = builder
        self.types = types
        self.kicks = 0  # the number of the last kick, which names its arrows
        self.open: set[int] = set()  # tracks with a slice that has begun
        self._describe(name, vcpus)

    def write(self, recording: Recording) -> bytes:
        """Every event in order, and the end of every slice."""
        for record in recording.records:
            if record.name == Tracepoint.VCPU_STATE and record.vcpu is not None:
                self._state(record, recording.begin_ns)
            elif record.name in (Tracepoint.KVM_KICK_ALL, Tracepoint.KVM_RESUME_ALL):
                self._window(record)
            else:
                self._instant(record)
        for track in sorted(self.open):
            self._event(recording.end_ns, track, self.types.TYPE_SLICE_END)
        encoded: bytes = self.builder.serialize()
        return encoded

    def _describe(self, name: str, vcpus: Sequence[int]) -> None:
        process = self._track(VM)
        process.process.pid = PID
        process.process.process_name = f"VM {name}"
        for uuid, title in ((KICK, "KVM_KICK_ALL_RUNNING_VCPUS"), (WINDOW, "window")):
            track = self._track(uuid)
            track.parent_uuid = VM
            track.name = title
        for vcpu in vcpus:
            thread = self._track(FIRST_VCPU + vcpu).thread
            thread.pid, thread.tid, thread.thread_name = PID, FIRST_VCPU + vcpu, f"vCPU {vcpu}"

    def _track(self, uuid: int) -> Any:
        packet = self.builder.add_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.track_descriptor.uuid = uuid
        return packet.track_descriptor

    def _event(self, t_ns: int, track: int, kind: int, name: str = "") -> Any:
        packet = self.builder.add_packet()
        packet.timestamp = t_ns
        packet.trusted_packet_sequence_id = SEQUENCE
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name:
            event.name = name
        return event

    def _begin(self, t_ns: int, track: int, name: str) -> Any:
        self._end(t_ns, track)
        self.open.add(track)
        return self._event(t_ns, track, self.types.TYPE_SLICE_BEGIN, name)

    def _end(self, t_ns: int, track: int) -> None:
        if track in self.open:
            self.open.discard(track)
            self._event(t_ns, track, self.types.TYPE_SLICE_END)

    def _state(self, record: Record, begin: int) -> None:
        track = FIRST_VCPU + (record.vcpu or 0)
        if track not in self.open:
            self._begin(begin, track, str(record.fields.get("old")))
        self._begin(record.t_ns, track, str(record.fields.get("state")))

    def _window(self, record: Record) -> None:
        phase = str(record.fields.get("phase"))
        kick = record.name == Tracepoint.KVM_KICK_ALL
        if kick and phase == "requested":
            self.kicks += 1
            self._begin(record.t_ns, KICK, "drain").flow_ids.append(self.kicks)
        elif kick:
            self._end(record.t_ns, KICK)
            if phase == "completed":
                self._begin(record.t_ns, WINDOW, f"kick {self.kicks}")
        elif phase == "completed":
            self._end(record.t_ns, WINDOW)
        self._annotate(self._event(record.t_ns, VM, self.types.TYPE_INSTANT, record.name), record)

    def _instant(self, record: Record) -> None:
        track = VM if record.vcpu is None else FIRST_VCPU + record.vcpu
        event = self._event(record.t_ns, track, self.types.TYPE_INSTANT, record.name)
        if record.name == Tracepoint.KVM_USERSPACE_EXIT and record.fields.get("errno") == errno.EINTR and self.kicks:
            event.terminating_flow_ids.append(self.kicks)
        self._annotate(event, record)

    def _annotate(self, event: Any, record: Record) -> None:
        fields: Mapping[str, object] = {"seq": record.seq, **record.fields}
        for name, value in fields.items():
            note = event.debug_annotations.add()
            note.name = name
            if isinstance(value, bool):
                note.bool_value = value
            elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
                note.int_value = value
            else:
                note.string_value = str(value)
