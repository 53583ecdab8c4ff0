"""Where event streams sleep, and the bytes they share.

The log wakes the hub once, the hub wakes every stream that sleeps, at once after a pause and once a tick while events
keep coming; a stream takes all there are. Streams with the same view and position share the joined bytes. A tick is
longer the more streams there are, which leaves time to what they watch.
"""

from __future__ import annotations

import asyncio
import errno
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from kickstand.core.errors import KvmError
from kickstand.runtime.events import EventLog, Record
from kickstand.settings import StreamSettings

CHUNK = 1_024  # events in one write at most
SHARED = 16  # joined chunks, and spans of events, kept for streams at the same position


@dataclass(frozen=True, slots=True)
class View:
    """Which events a stream shows: all, one VM's, or one vCPU's."""

    vm: str | None = None
    vcpu: int | None = None

    def shows(self, record: Record) -> bool:
        """The event belongs to this view."""
        if self.vm is None:
            return True
        return record.vm == self.vm and (self.vcpu is None or record.vcpu == self.vcpu)


class Span:
    """Events that follow each other, sorted by what views show once for all streams that are there."""

    def __init__(self, records: list[Record], end: int) -> None:
        self.records = records
        self.end = end
        self._of_vm: dict[str | None, list[Record]] = {}
        self._of_vcpu: dict[tuple[str | None, int | None], list[Record]] = {}

    def of(self, view: View) -> list[Record]:
        """Those that belong to a view."""
        if view.vm is None:
            return self.records
        if not self._of_vm:
            self._sort()
        found = self._of_vm.get(view.vm) if view.vcpu is None else self._of_vcpu.get((view.vm, view.vcpu))
        return found or []

    def _sort(self) -> None:
        of_vm, of_vcpu = self._of_vm, self._of_vcpu
        for record in self.records:
            of_vm.setdefault(record.vm, []).append(record)
            of_vcpu.setdefault((record.vm, record.vcpu), []).append(record)


class Wire(ABC):
    """How one event becomes bytes."""

    media_type = ""

    @abstractmethod
    def event(self, name: str, event_id: str | None, data: str) -> str:
        """Encode an event; without an id a client's resume point stays where it was."""

    @abstractmethod
    def heartbeat(self, seq: int, t_ns: int) -> bytes:
        """Encode "nothing new, still here", and what time it is for the server."""

    def preamble(self) -> bytes:
        """What comes before the first event."""
        return b""


class ServerSentEvents(Wire):
    """The browser's format."""

    media_type = "text/event-stream"

    def event(self, name: str, event_id: str | None, data: str) -> str:
        told = f"event: {name}\ndata: {data}\n\n"
        return told if event_id is None else f"id: {event_id}\n{told}"

    def heartbeat(self, seq: int, t_ns: int) -> bytes:
        return f": hb {seq} {t_ns}\n\n".encode()

    def preamble(self) -> bytes:
        return b"retry: 1000\n\n"


class JsonLines(Wire):
    """One object a line: ``{"id", "event", "data"}``."""

    media_type = "application/x-ndjson"

    def event(self, name: str, event_id: str | None, data: str) -> str:
        quoted = "null" if event_id is None else f'"{event_id}"'
        return f'{{"id":{quoted},"event":"{name}","data":{data}}}\n'

    def heartbeat(self, seq: int, t_ns: int) -> bytes:
        return b'{"id":null,"event":"heartbeat","data":{"seq":%d,"t_ns":%d}}\n' % (seq, t_ns)


SSE, NDJSON = ServerSentEvents(), JsonLines()


def in_lines(accept: str) -> bool:
    """An ``Accept`` header asks for NDJSON; with ``q=0`` it asks for anything else (RFC 9110, 12.4.2)."""
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type == NDJSON.media_type:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


class Past(Protocol):
    """Events that follow each other; ``lost`` before them are not known."""

    @property
    def records(self) -> list[Record]: ...

    @property
    def lost(self) -> int: ...


class Archive(Protocol):
    """Events that the ring does not hold any more, or not yet after a restart."""

    async def read(self, after: int) -> Past | None:
        """The next events after number ``after``; None: there are no more."""
        ...


class Hub:
    """All streams of one server. ``archive``, if there is one, goes further back than the log's ring."""

    def __init__(self, log: EventLog, settings: StreamSettings) -> None:
        self.log = log
        self.settings = settings
        self.streams = 0  # open now
        self.gaps = 0  # told to slow readers so far
        self.closed = False
        self.archive: Archive | None = None
        self.sleepers: set[Sleeper] = set()
        self._armed = False  # the log will tell of the next event
        self._waking = False  # the tick that wakes the sleepers is due
        self._woke_at = 0.0
        self._woken = 0  # streams, in the last round
        self._shared: dict[tuple[View, Wire, int], tuple[bytes, int]] = {}
        self._spans: dict[int, Span] = {}
        # What streams share within one turn of the loop: snapshots, and which events a view would have shown.
        self._snapshots: dict[tuple[View, Wire], tuple[asyncio.Future[bytes], int]] = {}
        self._numbers: dict[tuple[View, int], list[int]] = {}

    def admit(self, limit: int) -> None:
        """EAGAIN if ``limit`` streams are open."""
        if self.streams >= limit:
            raise KvmError(errno.EAGAIN, "events", f"{limit} event streams are open, which is the limit (streams)")

    def close(self) -> None:
        """Wake every stream for its last words."""
        self.closed = True
        self._wake()

    def listen(self, seq: int) -> None:
        """Wake the sleepers when there are events after ``seq``."""
        if self.log.seq > seq:
            self._notice()
        elif not self._armed:
            self._armed = True
            self.log.wake_at_next(self._notice)

    def _notice(self) -> None:
        self._armed = False
        if not self._waking:
            self._waking = True
            loop = asyncio.get_running_loop()
            due = self._woke_at + max(self.settings.tick_s, self._woken * self.settings.stream_s)
            if due <= loop.time():
                loop.call_soon(self._wake)
            else:
                loop.call_at(due, self._wake)

    def _wake(self) -> None:
        self._waking = False
        self._woke_at = asyncio.get_running_loop().time()
        sleepers, self.sleepers = self.sleepers, set()
        self._woken = len(sleepers)
        for sleeper in sleepers:
            sleeper.wake()

    def snapshot(
        self, view: View, wire: Wire, after: int, take: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> tuple[asyncio.Future[bytes], int]:
        """The state of what a view shows, and the number of the last event in it.

        ``take`` looks at the state at once; the coroutine that it returns encodes that, which may take several turns.
        Never older than event ``after``. Streams that ask in one turn of the loop share it: whatever their clients
        know of was done in turns before. Whoever waits for it shields it from a departure of its own.
        """
        key = (view, wire)
        found = self._snapshots.get(key)
        if found is None or found[1] < after:
            self._forget_after_this_turn()
            found = self._snapshots[key] = asyncio.ensure_future(take()), self.log.seq
        return found

    def _forget_after_this_turn(self) -> None:
        if not (self._snapshots or self._numbers):
            loop = asyncio.get_running_loop()
            loop.call_soon(self._snapshots.clear)
            loop.call_soon(self._numbers.clear)

    def chunk(self, view: View, wire: Wire, seq: int) -> tuple[bytes, int]:
        """The next events after ``seq`` as one piece, and the number of the last one looked at."""
        key = (view, wire, seq)
        found = self._shared.get(key)
        if found is None or found[1] < min(self.log.seq, seq + CHUNK):
            found = self._join(view, wire, seq)
            if len(self._shared) >= SHARED:
                self._shared.clear()
            self._shared[key] = found
        return found

    def _join(self, view: View, wire: Wire, seq: int) -> tuple[bytes, int]:
        span = self._spans.get(seq)
        if span is None or span.end < min(self.log.seq, seq + CHUNK):
            records, _ = self.log.since(seq, CHUNK)
            span = Span(records, records[-1].seq if records else seq)
            if len(self._spans) >= SHARED:
                self._spans.clear()
            self._spans[seq] = span
        return self._encode(wire, span.of(view)), span.end

    def join(self, view: View, wire: Wire, records: list[Record]) -> bytes:
        """Those of ``records`` that belong to a view, as one piece."""
        return self._encode(wire, list(filter(view.shows, records)))

    def _encode(self, wire: Wire, records: list[Record]) -> bytes:
        epoch = self.log.epoch
        return "".join([wire.event(record.name, f"{epoch}-{record.seq}", record.data) for record in records]).encode()

    def behind(self, seq: int) -> bool:
        """A reader at ``seq`` has fallen too far back, or the ring has dropped what it needs."""
        return self.log.seq - seq > min(self.settings.backlog, self.log.kept)

    def missed(self, view: View, seq: int, end: int) -> int:
        """How many events of a view up to number ``end`` a reader at ``seq`` will never see.

        Of those that the ring does not hold any more, all count.
        """
        if view.vm is None:
            return end - seq
        known = min(end, max(seq, self.log.seq - self.log.kept))
        numbers = self._numbers.get((view, end))
        if numbers is None:
            self._forget_after_this_turn()
            numbers = self._numbers[view, end] = self.log.numbers(view.vm, view.vcpu, end)
        return known - seq + len(numbers) - bisect_right(numbers, known)

    def resume_point(self, given: str) -> int | str:
        """The number to go on after, or why a client's last event id is of no use."""
        epoch, dash, number = given.strip().rpartition("-")
        if dash and epoch != self.log.epoch:
            return "epoch"
        if not (number.isascii() and number.isdecimal()) or len(number) > 18:  # noqa: PLR2004  fits 64 bits
            return "unusable"
        seq = int(number)
        if seq > self.log.seq:
            return "future"
        return "too_old" if self.archive is None and self.behind(seq) else seq


class Sleeper:
    """One stream's bed. Its alarm is set once and not with every sleep; ``close`` takes it away."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._due = 0.0

    async def wait(self, seq: int, due: float) -> None:
        """Sleep until there are events after ``seq``, the hub closes, or it is ``due`` (loop time); always suspends."""
        hub, loop = self.hub, self.loop
        if hub.closed or hub.log.seq - seq >= CHUNK or due <= loop.time():
            await asyncio.sleep(0)
            return
        self._due = due
        if self._alarm is None:
            self._alarm = loop.call_at(due, self._ring)
        self._woken = loop.create_future()
        hub.sleepers.add(self)
        hub.listen(seq)
        try:
            await self._woken
        finally:
            hub.sleepers.discard(self)

    def _ring(self) -> None:
        early = self._due > self.loop.time()
        self._alarm = self.loop.call_at(self._due, self._ring) if early else None
        if not early:
            self.wake()

    def wake(self) -> None:
        """End the sleep, if there is one."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def close(self) -> None:
        """The stream is over."""
        if self._alarm is not None:
            self._alarm.cancel()
