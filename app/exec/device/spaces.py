"""The processes of a program by their threads: whose memory a call is about."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from kickstand.core.errors import KvmError
from kickstand.exec.device.objects import AddressSpace, ProgramVm
from kickstand.exec.host import linux
from kickstand.exec.host.process import Process, tgid_of


class Spaces:
    """The address spaces that were seen."""

    def __init__(self) -> None:
        self._spaces: dict[int, AddressSpace] = {}
        self._left: list[AddressSpace] = []  # of processes that have ended, or are other programs now
        self._tgids: dict[int, int] = {}

    def __iter__(self) -> Iterator[AddressSpace]:
        return iter((*self._spaces.values(), *self._left))

    def seen(self, tid: int) -> AddressSpace | None:
        """The address space of a thread, if it has been here."""
        try:
            return self._spaces.get(tgid_of(tid))
        except ProcessLookupError:
            return None

    def of(self, tid: int) -> AddressSpace:
        """The address space of a thread. ``ProcessLookupError``: it has ended."""
        tgid = self._tgids[tid] = tgid_of(tid)  # never what it was before: numbers of threads come again
        space = self._spaces.get(tgid)
        if space is None or not space.process.alive:
            try:
                process = Process(tgid)
            except OSError:
                raise ProcessLookupError(errno.ESRCH, f"process {tgid} has ended") from None
            if space is not None:
                self._left.append(space)
            space = self._spaces[tgid] = AddressSpace(process)
            self.sweep()
        return space

    def sweep(self) -> None:
        """Give back what processes have left that have ended, and their VMs too."""
        for tgid, space in tuple(self._spaces.items()):
            if not space.vms and not space.process.alive:
                self._left.append(self._spaces.pop(tgid))
        for space in self._left:
            if not space.vms and not space.busy:
                space.close()
        self._left = [space for space in self._left if space.vms or space.busy]

    def own_process(self, tid: int, vm: ProgramVm) -> Process:
        """``kvm->mm``: a VM answers its own address space only. EIO for any other."""
        process = vm.space.process
        if self._tgids.get(tid) != process.tgid:
            tgid = self._tgids[tid] = tgid_of(tid)
            if tgid != process.tgid and not linux.same_memory(tgid, process.tgid):
                raise KvmError(errno.EIO, "ioctl", "the VM belongs to another address space")
        return process


@dataclass(frozen=True, slots=True)
class CallersMemory:
    """The memory of a thread that asks the system: whether its process still lives costs more than most answers."""

    spaces: Spaces
    tid: int

    def read(self, address: int, length: int) -> bytes:
        """As ``Process.read``."""
        return self.spaces.of(self.tid).process.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """As ``Process.write``."""
        self.spaces.of(self.tid).process.write(address, data)
