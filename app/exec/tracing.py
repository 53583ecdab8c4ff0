"""``--trace``: the run of each VM as an ioctl script, with what the program wrote into guest memory.

The runtime's history has the ioctls. What it cannot see is the program storing into its own memory: whenever a vCPU
enters and no other is inside, each page that differs from what it held when the last one left is noted as a write, and
coalesced writes that the program has taken from their ring as taken.
"""

from __future__ import annotations

import gzip
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kickstand.core.memslots import Region
from kickstand.exec.host import linux
from kickstand.exec.host.maps import PAGE
from kickstand.exec.memory.copying import merged
from kickstand.exec.memory.sharing import SharedMemory
from kickstand.guests.host_memory import Arena, ForeignMemory
from kickstand.runtime.calls.history import Call, History
from kickstand.runtime.machine import Machine

_ENDLESS = 1 << 62
_ZEROS = bytes(PAGE)
_NOTHING = memoryview(b"")


class TraceFile:
    """A file of traces, one a line: JSON lines, compressed if its name ends in ``.gz``."""

    def __init__(self, path: Path) -> None:
        opened: Any = gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")  # noqa: SIM115  closed by ``close``
        self._file: IO[bytes] = opened

    def add(self, trace: VmTrace) -> None:
        """Write the run of a VM that has ended."""
        self._file.write(trace.line())

    def close(self) -> None:
        """No more VMs."""
        self._file.close()


class VmTrace:
    """The run of one VM."""

    def __init__(self, machine: Machine, space: SharedMemory) -> None:
        self._machine = machine
        self._space = space
        self._ranges: list[tuple[int, int]] = []  # host addresses of all slots there ever were
        self._known: dict[int, bytes] = {}  # pages by host address as the last guest left them; none: zeros
        self._windows: dict[int, bool] = {}
        self._place = 0  # in the ring of coalesced writes, up to which the program has taken them
        machine.history = History(_ENDLESS, _ENDLESS)

    def slot(self, region: Region) -> None:
        """A slot is about to be made here."""
        if region.memory_size:
            start = region.userspace_addr // PAGE * PAGE
            self._ranges = merged([*self._ranges, (start, region.userspace_addr + region.memory_size)])

    def window(self, vcpu_id: int, wanted: bool) -> None:
        """The program's request_interrupt_window as it is now."""
        if self._windows.get(vcpu_id, False) != wanted:
            self._windows[vcpu_id] = wanted
            flag = {"vcpu_id": vcpu_id, "flag": "request_interrupt_window", "value": wanted}
            self._note("set_run_flag", flag)

    def entering(self) -> None:
        """A vCPU enters, and none is inside: note what the program has written."""
        for address, now in self._changed():
            before = self._known.get(address, _ZEROS)
            start = next(at for at in range(PAGE) if now[at] != before[at])
            end = next(at for at in range(PAGE, 0, -1) if now[at - 1] != before[at - 1])
            self._note("write", {"hva": address + start, "data": now[start:end]})
            self._known[address] = now
        self._place, taken = self._machine.vm.arch.coalesced.emptied(self._place)
        if taken:
            self._note("drain_coalesced", {}, taken)

    def left(self) -> None:
        """The last vCPU inside has left: what has changed since is the guest's doing."""
        self._known |= dict(self._changed())

    def _changed(self) -> Iterator[tuple[int, bytes]]:
        gone = {address for address, page in self._known.items() if page.strip(b"\0")}
        for start, end in self._ranges:
            for stretch in self._space.stored(start, end):
                for at in range(0, stretch.size, PAGE):
                    address = stretch.hva + at
                    gone.discard(address)
                    assert stretch.address is not None
                    now = bytes(linux.view_of(stretch.address + at, PAGE))
                    if now != self._known.get(address, _ZEROS):
                        yield address, now
        yield from ((address, _ZEROS) for address in gone)  # discarded

    def _note(self, name: str, arguments: Mapping[str, object], result: object = None) -> None:
        call = self._machine.history.begin(name, (), arguments)
        if call is not None:
            self._machine.history.end(call, result)

    def line(self) -> bytes:
        """The trace. The machine's memory is that of the script from now on."""
        from kickstand.scripts.export import exporter  # noqa: PLC0415  slow to load, and few programs are traced

        memory = ForeignMemory()
        calls: deque[Call] = self._machine.history.calls
        for start, end in reversed(self._ranges):
            arena = Arena(start, end - start, f"memory{start:x}", _NOTHING, 0)
            memory.place_arena(arena)
            asked = {"size": arena.size, "name": arena.name}
            calls.appendleft(Call("allocate", (), asked, None, begun=0, ended=0, result=arena))
        self._machine.memory = memory
        return exporter(self._machine)()
