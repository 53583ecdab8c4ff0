"""The event log: every event in one order, the newest kept in a ring, and what is told seldom kept for longer.

A vCPU that spins fills the ring within seconds. The slot changes, kicks and holes before that are what people ask for:
they are kept apart as well.

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
from functools import lru_cache
from operator import itemgetter

from kickstand.core.trace import Tracepoint

CAPACITY = 65_536
LASTING = 8_192  # of the events below, however many others come
CHANGES = (
    Tracepoint.KVM_CREATE_VM, Tracepoint.KVM_RESTORE_VM, Tracepoint.KVM_DESTROY_VM, Tracepoint.KVM_CREATE_VCPU,
    Tracepoint.VMM_REST,
    Tracepoint.KVM_KICK_ALL, Tracepoint.KVM_RESUME_ALL, Tracepoint.MEM_TRANSACTION, Tracepoint.KVM_MEMSLOT,
)  # fmt: skip
HOLES = (Tracepoint.KVM_MMIO,)  # which a device can be the reason of as well: apart, so that it drives out no kick
ENCODED_FIELDS = 4_096  # whose JSON is remembered
Entry = tuple[int, str | None, int | None, str, Mapping[str, object]]
"""An event that nobody has read: the clock in ns, VM, vCPU, name, fields."""


@dataclass(slots=True)
class Record:
    """One event. ``t_ns`` counts from the start of the server; ``vcpu`` is None for what concerns a whole VM."""

    seq: int
    t_ns: int
    vm: str | None
    vcpu: int | None
    name: str
    fields: Mapping[str, object]
    _data: str | None = field(default=None, repr=False)

    @property
    def data(self) -> str:
        """The event as one line of JSON, in ASCII, made once for all readers."""
        if self._data is None:
            vcpu = "null" if self.vcpu is None else self.vcpu
            members = _members(self.fields)
            self._data = f'{{"seq":{self.seq},"vm":{_quoted(self.vm)},"vcpu":{vcpu},"t_ns":{self.t_ns}{members}}}'
        return self._data


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode  # made once: making one costs more than using it


def to_json(value: object) -> str:
    """``value`` as one line of JSON, in ASCII; as text what JSON has no form for."""
    return _encode(value)


_quoted = lru_cache(maxsize=256)(to_json)
_known: dict[int, tuple[Mapping[str, object], str]] = {}  # holds the fields too, so that no others get their identity


def _members(fields: Mapping[str, object]) -> str:
    """The members of an object that follow others. Most events share their fields with many: those are made once."""
    found = _known.get(id(fields))
    if found is None:
        if len(_known) >= ENCODED_FIELDS:
            _known.clear()
        found = _known[id(fields)] = fields, f",{to_json(fields)[1:-1]}" if fields else ""
    return found[1]


def new_epoch() -> str:
    """A name that no other numbering has."""
    return secrets.token_hex(4)


class EventLog:
    """Numbers events from 1 without a hole; ``epoch`` tells one numbering from another."""

    def __init__(
        self,
        capacity: int = CAPACITY,
        lasting: int = LASTING,
        *,
        epoch: str | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.epoch = epoch or new_epoch()
        self.seq = 0
        self.capacity = capacity
        self._before = 0  # the number before this log's first event
        self._clock = clock
        self._start = clock()
        # Events as they came, and Records of those that somebody has read: far more is reported than is looked at.
        self._ring: list[Entry | Record] = [(0, None, None, "", {})] * capacity
        self._lasting: dict[str, deque[tuple[int, Entry]]] = {}
        for names in CHANGES, HOLES:
            together: deque[tuple[int, Entry]] = deque(maxlen=lasting)
            self._lasting |= dict.fromkeys(names, together)
        self._sleepers: list[Callable[[], None]] = []

    def go_on(self, epoch: str, seq: int, elapsed_ns: int) -> None:
        """Go on where another process stopped; before the first event."""
        self.epoch = epoch
        self.seq = self._before = seq
        self._start = self._clock() - elapsed_ns

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds since the log began: the clock of ``t_ns``."""
        return self._clock() - self._start

    @property
    def kept(self) -> int:
        """How many events the ring holds."""
        return min(self.seq - self._before, self.capacity)

    def emit(self, vm: str | None, name: str, vcpu: int | None, fields: Mapping[str, object]) -> int:
        """Append an event, wake the readers that sleep, and return its number; ``fields`` must not change later."""
        return self.tracer(vm)(name, vcpu, fields)

    def tracer(self, vm: str | None) -> Callable[[str, int | None, Mapping[str, object]], int]:
        """``emit`` of one VM, for what happens a few times in every KVM_RUN."""
        # Plain names: see ``kickstand.core.trace``.
        ring, capacity, clock, lasting = self._ring, self.capacity, self._clock, self._lasting

        def emit(name: str, vcpu: int | None, fields: Mapping[str, object]) -> int:
            self.seq = seq = self.seq + 1
            ring[seq % capacity] = entry = clock(), vm, vcpu, name, fields
            if name in lasting:
                lasting[name].append((seq, entry))
            if self._sleepers:
                self._wake()
            return seq

        return emit

    def _wake(self) -> None:
        sleepers, self._sleepers = self._sleepers, []
        for wake in sleepers:
            wake()

    def since(self, seq: int, limit: int | None = None) -> tuple[list[Record], int]:
        """Return up to ``limit`` events after ``seq`` and how many between were lost to the ring's size."""
        if seq >= self.seq:
            return [], 0
        begin = max(seq, self.seq - self.kept)
        end = self.seq if limit is None else min(self.seq, begin + limit)
        return [self._record(number) for number in range(begin + 1, end + 1)], begin - seq

    def lasting(self, after: int, end: int) -> list[Record]:
        """Of the events after ``after`` up to ``end``, those that are kept for longer than the ring keeps them."""
        kept = {id(entries): entries for entries in self._lasting.values()}.values()
        found = [told for entries in kept for told in entries if after < told[0] <= end]
        return [self._made(seq, entry) for seq, entry in sorted(found, key=itemgetter(0))]

    def whole_since(self, names: frozenset[str] = frozenset()) -> int:
        """The number of the event from which on none of these names is missing; without names: none at all."""
        since = self.seq - self.kept + 1
        if not names or not names <= self._lasting.keys():
            return since
        full = [self._lasting[name][0][0] for name in names if len(self._lasting[name]) == self._lasting[name].maxlen]
        return min(since, max(full, default=self._before + 1))

    def numbers(self, vm: str | None, vcpu: int | None, end: int) -> list[int]:
        """The events up to number ``end`` of a VM, or of its vCPU ``vcpu``, as far as the ring holds them."""
        found = []
        for seq in range(self.seq - self.kept + 1, end + 1):
            entry = self._ring[seq % self.capacity]
            of = entry[1:3] if isinstance(entry, tuple) else (entry.vm, entry.vcpu)
            if of[0] == vm and vcpu in (None, of[1]):
                found.append(seq)
        return found

    def _record(self, seq: int) -> Record:
        at = seq % self.capacity
        entry = self._ring[at]
        if isinstance(entry, tuple):
            entry = self._ring[at] = self._made(seq, entry)
        return entry

    def _made(self, seq: int, entry: Entry) -> Record:
        clock_ns, vm, vcpu, name, fields = entry
        return Record(seq, clock_ns - self._start, vm, vcpu, name, fields)

    def wake_at_next(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once, when the next event is there."""
        self._sleepers.append(wake)
