"""The seam to whatever keeps machines beyond the process: who answers a call waits until it is kept.

The runtime knows no store. A machine without a journal pays one test for None; with one, the outermost call of a
task is refused while nothing can be kept, and answered after what it changed is committed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from app.runtime.machine import Machine

C = TypeVar("C")
inside: ContextVar[bool] = ContextVar("durable_inside", default=False)
"""True while the calls of this task are parts of a greater one, which is kept as a whole."""


class Journal(Protocol):
    """What keeps machines. All of it is called on the event loop."""

    def check(self, ioctl: str) -> None:
        """Refuse a call while nothing could be kept. ENOSPC, EROFS; nothing has changed then."""
        ...

    def note(self, machine: Machine, vcpu_id: int | None = None) -> int:
        """Keep the machine as it is now, in time; ``vcpu_id`` names a vCPU that the call was about."""
        ...

    async def committed(self, machine: Machine, vcpu_id: int | None = None) -> None:
        """``note``, and return once the machine as it was at the call is safe. ENOSPC, EROFS: it is not."""
        ...

    def attach(self, machine: Machine) -> None:
        """Keep this machine from now on; called before it has host memory."""
        ...

    async def forget(self, machine: Machine) -> None:
        """The machine was destroyed: return once it will not come back."""
        ...


def durable(*names: str) -> Callable[[type[C]], type[C]]:
    """Make the coroutine methods so named of a class that has ``journal`` return after their outcome is kept."""

    def decorate(machine: type[C]) -> type[C]:
        for name in names:
            setattr(machine, name, _kept(name, vars(machine)[name]))
        return machine

    return decorate


def _kept(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    about_vcpu = "vcpu_id" in inspect.signature(method).parameters

    @functools.wraps(method)
    async def kept(self: Any, *args: Any, **kwargs: Any) -> Any:
        journal: Journal | None = self.journal
        if journal is None or inside.get():
            return await method(self, *args, **kwargs)
        vcpu_id = (args[0] if args else kwargs.get("vcpu_id")) if about_vcpu else None
        journal.check(name)
        token = inside.set(True)
        try:
            result = await method(self, *args, **kwargs)
        except BaseException:
            journal.note(self, vcpu_id)  # what it changed before it failed; nobody waits for that
            raise
        finally:
            inside.reset(token)
        await journal.committed(self, vcpu_id)
        return result

    return kept
