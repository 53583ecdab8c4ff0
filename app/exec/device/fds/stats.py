"""The files of KVM_GET_STATS_FD: the program reads them as it likes, so they are written when the numbers change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from kickstand.core.run.stats import image


class StatsFile:
    """One object's file, made when it is first asked for."""

    def __init__(self, name: str, values: Callable[[], Mapping[str, int]]) -> None:
        self._name = name
        self._values = values
        self._descriptor: int | None = None

    def opened(self) -> int:
        """A new descriptor to read it, to be given to the program and closed here. ``OSError``: none is left."""
        if self._descriptor is None:
            self._descriptor = os.memfd_create("kvm-stats", os.MFD_CLOEXEC)
        self.refresh()
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def refresh(self) -> None:
        """The numbers have changed."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, image(self._name, self._values()), 0)

    def close(self) -> None:
        """The object has ended; who has the file open still reads its last numbers."""
        if self._descriptor is not None:
            self.refresh()
            os.close(self._descriptor)
            self._descriptor = None
