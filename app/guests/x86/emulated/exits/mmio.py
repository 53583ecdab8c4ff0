"""Memory-mapped I/O: from an instruction that met a hole to its exits and back.

A read exits fragment by fragment; when its last byte is known the instruction is executed with it. Writes exit after
the instruction is finished (``read_emulated``, ``emulator_read_write``, ``complete_emulated_mmio``). The slots are
not looked at again for what was already answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.run.exits import MmioExit
from kickstand.guests.x86.memory.physical import PER_EXIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kickstand.guests.x86.emulated.exits.pending import PendingRead, PendingWrite

_PIO_PAGE_OFFSET = 4096  # what kvm_run.io.data_offset leaves behind in the bytes of mmio.data


class SharedData:
    """What ``kvm_run.mmio.data`` holds: userspace that answers nothing answers this."""

    def __init__(self) -> None:
        self._bytes = bytes(PER_EXIT)

    def put(self, data: bytes) -> None:
        """Overwrite the first bytes."""
        self._bytes = (data + self._bytes[len(data) :])[:PER_EXIT]

    def after_io_exit(self) -> None:
        """``kvm_run.io`` lies over the same bytes."""
        self._bytes = _PIO_PAGE_OFFSET.to_bytes(PER_EXIT, "little")

    def answer(self, reply: bytes | None, length: int) -> bytes:
        """The reply, filled up with what is there; it stays there."""
        self.put((reply or b"")[:length])
        return self._bytes[:length]

    def dump(self) -> str:
        """For a snapshot."""
        return self._bytes.hex()

    def load(self, text: str) -> None:
        """From a snapshot. ``ValueError``: it is not of that size."""
        data = bytes.fromhex(text)
        if len(data) != PER_EXIT:
            raise ValueError(f"the shared bytes of an exit are {PER_EXIT}, not {len(data)}")
        self._bytes = data


def read_exit(pending: PendingRead) -> MmioExit:
    """The exit for the next missing fragment."""
    part = pending.missing[0]
    return MmioExit(part.gpa, part.length, is_write=False)


def write_exit(pending: PendingWrite) -> MmioExit:
    """The exit for the next piece."""
    gpa, data = pending.pieces[0]
    return MmioExit(gpa, len(data), is_write=True, data=data)


def in_exit_sizes(pieces: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Cut device writes to what one exit carries."""
    return [
        (gpa + start, data[start : start + PER_EXIT]) for gpa, data in pieces for start in range(0, len(data), PER_EXIT)
    ]


def last_store(device_parts: Iterable[list[tuple[int, bytes]]]) -> list[tuple[int, bytes]]:
    """The exits for an instruction with several stores, each given by its device part: only the last one is seen.

    ``emulator_read_write`` starts its fragments anew with each store, so PUSHA into a hole exits with EDI alone.
    A later store to memory leaves the exit as it was filled in, without its further fragments.
    """
    exits: list[tuple[int, bytes]] = []
    for parts in device_parts:
        exits = in_exit_sizes(parts) if parts else exits[:1]
    return exits


def take_reply(pending: PendingRead, data: bytes) -> bool:
    """Store the answer for the first missing fragment; true if the access is now complete."""
    part = pending.missing.pop(0)
    pending.data[part.offset : part.offset + part.length] = data
    return not pending.missing
