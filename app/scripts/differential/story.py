"""What generated stories share: the form of an operation, the layout of memory, and what a stop waits for."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from kickstand.scripts.differential.code.encodings import PAGE, WINDOW_PAGES

Op = dict[str, Any]
Answer = Mapping[str, Any]
Steps = Generator[Op, Answer, None]

CODE = 0x1000
STACK = 0x7000
TABLES = 0x8000
LOW_SIZE = 0x1_0000  # the slot with code, stack and page tables, which stays


def op(name: str, /, **args: Any) -> Op:
    """One operation."""
    return {"op": name, "args": args}


def arenas(mode: str) -> Steps:
    """Host memory of both slots, with page tables where the mode wants some."""
    yield op("arena", name="A", size=LOW_SIZE)
    yield op("arena", name="B", size=WINDOW_PAGES * PAGE)
    yield op("fill_pattern", arena="B")
    if mode == "long64":
        yield op("write_host", arena="A", offset=TABLES, hex=page_tables().hex())


def due(last: Answer) -> int | None:
    """How many bytes the access waits for at which a vCPU stopped; None if it does not wait."""
    if last.get("ret") != 0:
        return None
    if last.get("exit_reason") == "IO":
        return int(last["size"] * last["count"]) if last["direction"] == "in" else 0
    if last.get("exit_reason") == "MMIO":
        return 0 if last["is_write"] else int(last["len"])
    return None


def page_tables() -> bytes:
    """The identity in 2 MiB pages, accessed and dirty bits set."""
    tables = b""
    for entry in (TABLES + PAGE | 0x63, TABLES + 2 * PAGE | 0x63):
        tables += entry.to_bytes(8, "little").ljust(PAGE, b"\0")
    return tables + b"".join((page << 21 | 0xE3).to_bytes(8, "little") for page in range(8))
