"""Threads that somebody may kill: what they wait for then ends, and is undone as the core undoes it.

As on the server, where the caller of an ioctl goes away: ``Killed`` comes out of whatever it waits for, and KICK takes
its request back. Whoever does not wait goes on to the end of its ioctl, and performs no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kickstand.core.atomics import Killed, Shared, atomic, blocked

ALIVE, KILLED, DYING = "alive", "killed", "dying"
Perform = Callable[[Callable[..., Any], tuple[Any, ...], list[Shared]], Any]


class Fate(Shared):
    """Whether a thread has been killed; ``dying``: it knows, and cleans up."""

    __slots__ = ("state_of",)
    FIELDS = ("state_of",)

    def __init__(self) -> None:
        super().__init__()
        self.state_of = ALIVE

    @atomic
    async def kill(self) -> None:
        """SIGKILL."""
        if self.state_of == ALIVE:
            self.state_of = KILLED
            self.changed()

    @atomic
    async def is_alive(self) -> bool:
        """On the way from one call to the next: nobody has killed the thread."""
        return self.state_of == ALIVE


@dataclass(frozen=True, slots=True)
class Killable:
    """Performs an operation of a thread that may be killed; ``inner`` is how it is performed otherwise."""

    inner: Perform | None

    async def __call__(self, operate: Callable[..., Any], objects: tuple[Any, ...], extra: list[Shared]) -> Any:
        fate, *further = extra
        assert isinstance(fate, Fate)
        while True:
            operation = operate(*objects) if self.inner is None else self.inner(operate, objects, further)
            try:
                waits = operation.send(None)
            except StopIteration as stop:
                return stop.value
            operation.close()
            if fate.state_of == KILLED:
                fate.state_of = DYING
                raise Killed
            await blocked(*waits.objects, fate, key=waits.key)
