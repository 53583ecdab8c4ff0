"""Stores of code that counts to pages of code: Unicorn is told to report them, and what it leaves behind is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const

from kickstand.guests.x86.translated.host_window import engine_address

if TYPE_CHECKING:
    from kickstand.guests.x86.translated.unicorn_internals import Internals

_PAGE = 4096
_MOST_WATCHED = 64  # pages; each store to one of them looks through all


class WatchedStores:
    """Those of one Unicorn instance."""

    def __init__(self, uc: Any, internals: Internals) -> None:
        self._uc = uc
        self._internals = internals
        self._state = internals.state
        self._watched: dict[int, int] = {}  # host page: its hook
        self._stored_at = -1  # RIP of the last store to one of them

    def run_begins(self) -> None:
        """Nothing has been stored."""
        self._stored_at = -1

    def _storing(self, *_of_it: object) -> None:
        """Code that counts is about to store to its own page; to tell where, Unicorn has set ``cc_op`` back."""
        self._state.flags_are_collected()
        self._stored_at = self._state.rip

    def repeat(self, start: int) -> None:
        """One instruction comes again: if it stores to its own block, which was left in its middle, mend that.

        That has to be done each time.
        """
        if self._state.rip == self._stored_at:
            self._state.flags_are_collected()
            self._internals.in_pieces.value = 0  # else no store would be told any more
            self._uc.ctl_remove_cache(start, start + 1)

    def watch(self, host: int) -> bool:
        """Let code that counts store to this page of code. False: to too many already."""
        if host not in self._watched:
            if len(self._watched) == _MOST_WATCHED:
                return False
            at = engine_address(host)
            self._watched[host] = self._uc.hook_add(
                uc_const.UC_HOOK_MEM_WRITE, self._storing, begin=at, end=at + _PAGE - 1
            )
        return True

    def unwatch(self, host: int) -> None:
        """Nobody wants to know of stores to this page any more."""
        hook = self._watched.pop(host, None)
        if hook is not None:
            self._uc.hook_del(hook)

    def unwatch_all(self) -> None:
        """There is no page of code any more."""
        for host in list(self._watched):
            self.unwatch(host)
