"""The event log: every event in one order, the newest kept in a ring.

The log never waits for a reader. Readers keep a cursor (a sequence number), are woken at most once until
they read again, and learn how many events they were too slow for.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

CAPACITY = 65_536


@dataclass(slots=True)
class Record:
    """One event. ``t_ns`` counts from the start of the server; ``vcpu`` is None for what concerns a whole VM."""

    seq: int
    t_ns: int
    vm: str | None
    vcpu: int | None
    name: str
    fields: Mapping[str, object]
    _data: bytes | None = field(default=None, repr=False)

    @property
    def data(self) -> bytes:
        """The event as one line of JSON, encoded once for all readers."""
        if self._data is None:
            body = {"seq": self.seq, "vm": self.vm, "vcpu": self.vcpu, "t_ns": self.t_ns, **self.fields}
            self._data = json.dumps(body, separators=(",", ":"), default=str).encode()
        return self._data


def new_epoch() -> str:
    """A name that no other numbering has."""
    return secrets.token_hex(4)


class EventLog:
    """Numbers events from 1 without a hole; ``epoch`` tells one numbering from another."""

    def __init__(
        self, capacity: int = CAPACITY, *, epoch: str | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.epoch = epoch or new_epoch()
        self.seq = 0
        self.ring: deque[Record] = deque(maxlen=capacity)
        self._clock = clock
        self._start = clock()
        self._sleepers: list[Callable[[], None]] = []

    def go_on(self, epoch: str, seq: int, elapsed_ns: int) -> None:
        """Go on where another process stopped; before the first event."""
        self.epoch = epoch
        self.seq = seq
        self._start = self._clock() - elapsed_ns

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds since the log began: the clock of ``t_ns``."""
        return self._clock() - self._start

    def emit(self, vm: str | None, name: str, vcpu: int | None, fields: Mapping[str, object]) -> int:
        """Append an event, wake the readers that sleep, and return its number."""
        self.seq += 1
        self.ring.append(Record(self.seq, self._clock() - self._start, vm, vcpu, name, fields))
        if self._sleepers:
            sleepers, self._sleepers = self._sleepers, []
            for wake in sleepers:
                wake()
        return self.seq

    def since(self, seq: int, limit: int | None = None) -> tuple[list[Record], int]:
        """Return up to ``limit`` events after ``seq`` and how many between were lost to the ring's size."""
        if seq >= self.seq:
            return [], 0
        kept = len(self.ring)
        have = min(self.seq - seq, kept)
        lost = self.seq - seq - have
        if 2 * have > kept:
            stop = None if limit is None else kept - have + limit
            return list(islice(self.ring, kept - have, stop)), lost
        newest = list(islice(reversed(self.ring), have))  # a reader that keeps up does not walk the whole ring
        newest.reverse()
        return newest[:limit], lost

    def wake_at_next(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once, when the next event is there."""
        self._sleepers.append(wake)
