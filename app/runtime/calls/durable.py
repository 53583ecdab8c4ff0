"""The seam to whatever keeps machines beyond the process: who answers a call waits until it is kept.

The runtime knows no store. A machine without a journal pays one test for None; with one, the outermost call of a
task is refused while nothing can be kept, and answered after what it changed is committed.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

M_contra = TypeVar("M_contra", contravariant=True)

_part: ContextVar[bool] = ContextVar("durable_part", default=False)
"""True while the calls of this task are parts of a greater one, which is kept as a whole."""


class Journal(Protocol[M_contra]):
    """What keeps machines. All of it is called on the event loop."""

    def check(self, ioctl: str) -> None:
        """Refuse a call while nothing could be kept. ENOSPC, EROFS; nothing has changed then."""
        ...

    def note(self, machine: M_contra, vcpu_id: int | None = None) -> int:
        """Keep the machine as it is now, in time; ``vcpu_id`` names a vCPU that the call was about."""
        ...

    async def committed(self, machine: M_contra, vcpu_id: int | None = None) -> None:
        """``note``, and return once the machine as it was at the call is safe. ENOSPC, EROFS: it is not."""
        ...

    def attach(self, machine: M_contra) -> None:
        """Keep this machine from now on; called before it has host memory."""
        ...

    async def forget(self, machine: M_contra) -> None:
        """Return once the machine will not come back. ENOSPC, EROFS: it is kept as before."""
        ...

    def drop(self, machine: M_contra) -> None:
        """The machine is gone, and nobody was ever told of it."""
        ...


class Kept(Protocol):
    """A machine, as far as this goes."""

    @property
    def journal(self) -> Journal[Any] | None:
        """What keeps it, if anything does."""
        ...


def note(machine: Kept) -> None:
    """Keep the machine as it is now, in time, if anything keeps it."""
    if machine.journal is not None:
        machine.journal.note(machine)


async def committed(machine: Kept, vcpu_id: int | None = None) -> None:
    """Return once what was changed so far is kept, if anything is, and if no greater call waits for that."""
    if machine.journal is not None and not _part.get():
        await machine.journal.committed(machine, vcpu_id)


@asynccontextmanager
async def kept_as_one(machine: Kept, ioctl: str) -> AsyncGenerator[None]:
    """Make all calls within one: admitted once, and kept once at the end, also of those before one that failed."""
    if machine.journal is None or _part.get():
        yield
        return
    machine.journal.check(ioctl)
    token = _part.set(True)
    try:
        yield
    finally:
        _part.reset(token)
        await machine.journal.committed(machine)


@contextmanager
def not_kept() -> Generator[None]:
    """The calls within are taken back again before anybody is told of them: nothing of them is kept or waited for."""
    token = _part.set(True)
    try:
        yield
    finally:
        _part.reset(token)


def kept(ioctl: str, method: Callable[..., Any], *, about_vcpu: bool) -> Callable[..., Any]:
    """Make a coroutine method of a machine return after its outcome is kept. ENOSPC, EROFS: nothing can be."""

    @functools.wraps(method)
    async def call(self: Kept, *args: Any, **kwargs: Any) -> Any:
        journal = self.journal
        if journal is None or _part.get():
            return await method(self, *args, **kwargs)
        vcpu_id = (args[0] if args else kwargs.get("vcpu_id")) if about_vcpu else None
        journal.check(ioctl)
        token = _part.set(True)
        try:
            result = await method(self, *args, **kwargs)
        except BaseException:
            journal.note(self, vcpu_id)  # what it changed before it failed; nobody waits for that
            raise
        finally:
            _part.reset(token)
        await journal.committed(self, vcpu_id)
        return result

    return call


def admitted(ioctl: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a machine refuse while nothing could be kept. ENOSPC, EROFS; nothing has changed then."""

    @functools.wraps(method)
    def call(self: Kept, *args: Any, **kwargs: Any) -> Any:
        if self.journal is not None and not _part.get():
            self.journal.check(ioctl)
        return method(self, *args, **kwargs)

    return call
