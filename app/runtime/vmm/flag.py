"""Something that threads wait for in user mode."""

from __future__ import annotations

from kickstand.core.atomics import Shared


class Flag(Shared):
    """Something that threads wait for in user mode, set until it is cleared."""

    __slots__ = ("is_set",)
    FIELDS = ("is_set",)

    def __init__(self, *, is_set: bool = False) -> None:
        super().__init__()
        self.is_set = is_set

    def set(self) -> None:
        """Let everybody who waits go on."""
        self.is_set = True
        self.changed()

    def clear(self) -> None:
        """Whoever waits from now on has to wait."""
        self.is_set = False
