"""What is still recorded of one VM: the newest events, of older ones slots, kicks and holes, and what names them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kickstand.runtime.events import Record
from kickstand.runtime.machine import Machine

PORTION = 1_024  # events looked at in one turn of the loop


@dataclass(frozen=True, slots=True)
class Recording:
    """Events of one VM, oldest first; times in nanoseconds since the start of the server."""

    vm: str
    epoch: str
    vcpus: tuple[int, ...]
    records: tuple[Record, ...]
    whole_since: int = 0
    """The number of the event from which on none is missing."""

    @property
    def begin_ns(self) -> int:
        """When what vCPUs do began to be known."""
        return next((record.t_ns for record in self.records if record.seq >= self.whole_since), 0)

    @property
    def end_ns(self) -> int:
        return self.records[-1].t_ns if self.records else 0


async def recording_of(machine: Machine, limit: int, names: frozenset[str] = frozenset()) -> Recording:
    """The newest ``limit`` events of a VM, of these names if there are any, looked at a portion a turn of the loop."""
    log = machine.log
    seq, end, whole_since = 0, log.seq, 0
    found: list[Record] = []
    while seq < end:
        records, lost = log.since(seq, PORTION)
        if lost:
            whole_since = seq + lost + 1
            records = log.lasting(seq, seq + lost) + records
        seq = records[-1].seq
        found += [record for record in records if record.vm == machine.id and (not names or record.name in names)]
        await asyncio.sleep(0)
    return Recording(machine.id, log.epoch, tuple(sorted(machine.vm.vcpus)), tuple(found[-limit:]), whole_since)
