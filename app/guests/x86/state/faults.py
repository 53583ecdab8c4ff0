"""Exceptions of the guest, as Python exceptions while an instruction is being worked on."""

from __future__ import annotations

DE, DB, NMI, BP, OF, UD, NM, DF, TS, NP, SS_FAULT, GP, PF, AC = 0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 17
MC = 18
WITH_ERROR_CODE = frozenset({DF, TS, NP, SS_FAULT, GP, PF, AC})
CONTRIBUTORY = frozenset({DE, TS, NP, SS_FAULT, GP})


class GuestFaultError(Exception):
    """The guest gets exception ``vector``; ``address`` goes to CR2 for a page fault."""

    def __init__(self, vector: int, error: int = 0, address: int | None = None) -> None:
        super().__init__(vector, error, address)
        self.vector = vector
        self.error = error
        self.address = address


class DeviceAccessError(Exception):
    """An access that cannot become an MMIO exit (descriptor tables, frames) met a hole."""

    def __init__(self, gpa: int) -> None:
        super().__init__(gpa)
        self.gpa = gpa
