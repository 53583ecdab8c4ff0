"""irqfd: an event that becomes an interrupt, and with a second eventfd the end of that interrupt an event.

A line with such a second eventfd (``resamplefd``) is level triggered: it is high from the event until the guest has
ended the interrupt; then the program is told, and signals again if its device still wants to interrupt.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.uapi.layout import PADDING, U32, Bytes, Struct, struct
from kickstand.exec.device.fds.eventfds import ONE, Key, copied
from kickstand.runtime.machine import Machine

IRQFD: Struct = struct("kvm_irqfd", ("fd gsi flags resamplefd", U32), (PADDING, Bytes(16)))
NAME = "KVM_IRQFD"
_DEASSIGN, _RESAMPLE = 1, 2


@dataclass(frozen=True, slots=True)
class IrqFd:
    """Our copies of the program's eventfds; ``resample`` is None where there is no second one."""

    event: int
    gsi: int
    resample: int | None

    def close(self) -> None:
        """Give them back."""
        os.close(self.event)
        if self.resample is not None:
            os.close(self.resample)


class IrqFds:
    """Those of one VM, by eventfd and line."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._assigned: dict[tuple[Key, int], IrqFd] = {}
        self._busy: set[asyncio.Task[None]] = set()

    def ioctl(self, tgid: int, fields: dict[str, Any]) -> None:
        """KVM_IRQFD.

        EINVAL: no controllers in the kernel (for a line that is resampled: none with pins), flags, or no eventfd;
        EBUSY: assigned already.
        """
        flags = fields["flags"]
        if not self._machine.vm.irqchip:
            raise KvmError(errno.EINVAL, NAME, "the interrupt controllers are not in the kernel")
        if flags & ~(_DEASSIGN | _RESAMPLE):
            raise KvmError(errno.EINVAL, NAME, f"flags {flags:#x} are not known", field="flags")
        event, key = copied(tgid, fields["fd"])
        name = key, fields["gsi"]
        if flags & _DEASSIGN:
            os.close(event)
            self._drop(name)
            return
        try:
            self._check(name, resampled=bool(flags & _RESAMPLE))
            resample = copied(tgid, fields["resamplefd"])[0] if flags & _RESAMPLE else None
        except KvmError:
            os.close(event)
            raise
        self._assign(name, IrqFd(event, fields["gsi"], resample))

    def _check(self, name: tuple[Key, int], *, resampled: bool) -> None:
        chips = self._machine.vm.interrupts.chips
        if resampled and (chips is None or chips.split):
            raise KvmError(errno.EINVAL, NAME, "a split irqchip resamples in userspace", field="flags")
        if name in self._assigned:
            raise KvmError(errno.EBUSY, NAME, "this eventfd is assigned to the line already", field="fd")

    def _assign(self, name: tuple[Key, int], line: IrqFd) -> None:
        os.set_blocking(line.event, False)
        self._assigned[name] = line
        if line.resample is not None:
            os.set_blocking(line.resample, False)
            self._watch(line.gsi)
        asyncio.get_running_loop().add_reader(line.event, self._signalled, line)

    def _drop(self, name: tuple[Key, int]) -> None:
        line = self._assigned.pop(name, None)
        if line is None:
            return
        asyncio.get_running_loop().remove_reader(line.event)
        line.close()
        if line.resample is not None and not self._resamplers(line.gsi):
            self._start(self._machine.resample_line(line.gsi, None))

    def _watch(self, gsi: int) -> None:
        self._start(self._machine.resample_line(gsi, lambda: self._tell(gsi)))

    def _resamplers(self, gsi: int) -> list[int]:
        lines = self._assigned.values()
        return [line.resample for line in lines if line.gsi == gsi and line.resample is not None]

    def _tell(self, gsi: int) -> None:
        """The guest has ended the line's interrupt."""
        for resample in self._resamplers(gsi):
            with contextlib.suppress(BlockingIOError):
                os.write(resample, ONE)

    def _signalled(self, line: IrqFd) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(line.event, 8)
            held = line.resample is not None
            self._start(self._machine.hold_line(line.gsi) if held else self._pulse(line.gsi))

    async def _pulse(self, gsi: int) -> None:
        await self._machine.irq_line(gsi, 1)
        await self._machine.irq_line(gsi, 0)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_unless_dead(work))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    def close(self) -> None:
        """The VM has ended."""
        for name in tuple(self._assigned):
            line = self._assigned.pop(name)
            asyncio.get_running_loop().remove_reader(line.event)
            line.close()


async def _unless_dead(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(KvmError):  # the VM is dead, or the line leads nowhere
        await work
