"""How the time stamp counters of one VM's vCPUs are kept together (``kvm_synchronize_tsc``)."""

from __future__ import annotations


class TscSync:
    """What was last written to a counter of the VM by userspace."""

    def __init__(self) -> None:
        self._khz = 0
        self._written = 0
        self._at = 0
        self._offset = 0
        self._by_user = False

    def offset(self, value: int, ticks: int, khz: int, *, by_user: bool) -> int:
        """The offset of a counter that is set to ``value``: that of the others, if it says what they count now.

        ``ticks``: what the counter would have without an offset; ``khz``: its rate.

        A new vCPU's, and one that is set to 0, is always theirs; else a second's difference is taken for the time
        that the write took.
        """
        if khz == self._khz and self._is_theirs(value, ticks, khz):
            self._by_user |= by_user
            return self._offset
        self._by_user |= by_user
        self._khz, self._written, self._at, self._offset = khz, value, ticks, value - ticks
        return self._offset

    def follow(self, ticks: int, khz: int, offset: int) -> None:
        """A counter was given this offset."""
        self._khz, self._written, self._at, self._offset, self._by_user = khz, ticks + offset, ticks, offset, True

    def _is_theirs(self, value: int, ticks: int, khz: int) -> bool:
        expected = self._written + ticks - self._at
        return value == 0 or (self._by_user and abs(value - expected) < khz * 1_000)
