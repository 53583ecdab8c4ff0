"""The machines of a state directory come back at the start, each by itself: one that is damaged is kept aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kickstand.core.errors import KvmError
from kickstand.journal.disk.aside import keep_aside
from kickstand.journal.disk.directory import Arenas, Directory, LostError, owner
from kickstand.journal.disk.schema import DamagedError
from kickstand.journal.disk.store import NOBODY, Failure, Rows, Store, Work
from kickstand.journal.kept import Kept
from kickstand.journal.restore import Saved, UnreadableError, restore
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry
from kickstand.settings import SettingsError


class Comeback:
    """Serves what can be served. ``join`` is told of each machine that is back.

    ``refused``: machines that stay in the journal and are not served: number, reason.
    """

    def __init__(self, directory: Directory, registry: Registry, store: Store, join: Callable[[Kept], None]) -> None:
        self.refused: dict[int, str] = {}
        self._directory = directory
        self._registry = registry
        self._store = store
        self._join = join

    async def bring_back(self, uid: int, rows: Rows) -> None:
        """Serve one machine, or keep it aside if it is damaged, or leave it alone if it cannot be served here."""
        try:
            rows.check()
            await self._restore(uid, rows)
        except (UnreadableError, LostError, DamagedError) as error:
            await self._keep_aside(uid, rows, str(error))
        except KvmError as error:
            self.refused[uid] = error.detail
            self._directory.warn(f"{_name(uid, rows)} is not served, and stays as it is: {error.detail}")
        except OSError as error:
            name = _name(uid, rows)
            detail = f"{name} cannot be brought back now: {error.strerror or error}; nothing was changed"
            raise SettingsError(f"{self._directory.path}: {detail}") from error

    async def _keep_aside(self, uid: int, rows: Rows, why: str) -> None:
        name = _name(uid, rows)
        files = [self._directory.memory / arena for arena in self._directory.arenas() if owner(arena) == uid]
        try:
            folder = keep_aside(self._directory.path, name, why, files, rows)
            await self._store.wait(self._store.submit(Work({(uid, None): None})))
        except (OSError, Failure) as error:
            self.refused[uid] = why
            self._directory.warn(f"{name} is damaged: {why}; it stays where it is, because it cannot be moved: {error}")
        else:
            self._directory.warn(f"{name} is damaged: {why}; it was kept aside in {folder}, and the others are served")

    def arenas_of_refused(self) -> list[str]:
        return [name for name in self._directory.arenas() if owner(name) in self.refused]

    async def _restore(self, uid: int, parts: Mapping[str, bytes]) -> None:
        saved = Saved(parts)
        if len(saved.vm.files) != len(saved.vm.memory):
            raise UnreadableError(f"{len(saved.vm.memory)} pieces of host memory in {len(saved.vm.files)} files")
        arenas = Arenas(self._directory.memory, uid, saved.vm.files)

        async def fill(machine: Machine) -> None:
            for (base, size, name), file in zip(saved.vm.memory, saved.vm.files, strict=True):
                machine.memory.adopt(base, name, arenas.map(file, size))
            machine.memory.back = arenas

        machine = await restore(self._registry, saved, fill)
        self._join(Kept(uid, machine, arenas))


def _name(uid: int, rows: Rows) -> str:
    """How a person knows a machine, as far as that can be read."""
    if rows.name is not None:
        return f"virtual machine {rows.name}"
    return "a record of no machine" if uid == NOBODY else f"virtual machine number {uid}"
