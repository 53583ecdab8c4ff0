"""One machine's place in the journal: what calls have asked to be recorded of it."""

from __future__ import annotations

from kickstand.journal.disk.directory import Arenas
from kickstand.journal.form import Encoded
from kickstand.journal.records import Recorder
from kickstand.runtime.machine import Machine


class Kept:
    """One machine's place in the journal."""

    def __init__(self, uid: int, machine: Machine, arenas: Arenas) -> None:
        self.uid = uid
        self.machine = machine
        self.arenas = arenas
        self.recorder = Recorder(machine, lambda: arenas.names)
        self.ticket = 0  # of its last record; 0: nobody was told of the machine yet
        self.leaving = 0  # of the removal of all its records
        self._due = False  # calls wait for the next record
        self._asked: set[int] = set()
        self._others = False

    def ask(self, vcpu_id: int | None) -> None:
        """A call was about this vCPU, or about all: the next record is to say what became of it."""
        self._due = True
        if vcpu_id is None:
            self._others = True
        else:
            self._asked.add(vcpu_id)

    def stay(self) -> None:
        """It does not leave after all: its next record is a whole one."""
        self.leaving = 0
        self.recorder = Recorder(self.recorder.machine, self.recorder.files)

    def record(self, *, counters: bool = False) -> dict[str, Encoded | None]:
        """What calls have changed since the last record; nothing if none has asked."""
        if not self._due:
            return {}
        asked, others = self._asked, self._others
        self._due, self._asked, self._others = False, set(), False
        return self.recorder.changed(asked, others=others, counters=counters)
