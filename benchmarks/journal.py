"""Durable control calls of many clients against aiosqlite in autocommit, at the same synchronous level."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import aiosqlite
from harness import Ratio, at_least, judged, report

from kickstand.journal.disk.directory import Directory, warn
from kickstand.journal.disk.schema import connect
from kickstand.journal.journal import StateJournal
from kickstand.runtime.registry import Registry
from kickstand.settings import JournalSettings

CLIENTS = 64
CALLS = 30  # of each client
PEER_CALLS = 3
ROUNDS = 5


async def ours(folder: Path) -> float:
    """Seconds of one control call: a register is set and the answer waits for the disk."""
    registry = Registry()
    journal = StateJournal(Directory(folder, warn), registry, JournalSettings())
    await journal.start()
    machine = await registry.create("vm", vcpus=CLIENTS)

    async def client(vcpu: int) -> None:
        for call in range(CALLS):
            await machine.set_regs(vcpu, {"rax": call})

    begun = time.perf_counter()
    await asyncio.gather(*map(client, range(CLIENTS)))
    took = time.perf_counter() - begun
    await registry.reset()
    await journal.stop()
    return took / (CLIENTS * CALLS)


async def theirs(folder: Path, synchronous: int) -> float:
    """Seconds of one row of a similar size, each its own transaction."""
    value = b'{"arch":{},"page":{},"signal":false,"guest":{"at":0,"stored":{"rax":12}}}' * 8
    async with aiosqlite.connect(folder / "peer.sqlite3", isolation_level=None) as database:
        await database.execute("PRAGMA journal_mode = WAL")
        await database.execute(f"PRAGMA synchronous = {synchronous}")
        await database.execute("CREATE TABLE state (vm INTEGER, part TEXT, value BLOB, PRIMARY KEY (vm, part))")

        async def client(vcpu: int) -> None:
            for _ in range(PEER_CALLS):
                await database.execute("REPLACE INTO state VALUES (1, ?, ?)", (f"cpu/{vcpu}", value))

        begun = time.perf_counter()
        await asyncio.gather(*map(client, range(CLIENTS)))
        return (time.perf_counter() - begun) / (CLIENTS * PEER_CALLS)


def main() -> list[Ratio]:
    """The row. Both wait for the same disk, and what counts is how often: this is wall time."""
    ratios, pairs = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # not /tmp, which may be memory
            folder = Path(name)
            us = asyncio.run(ours(folder / "state"))
            connection = connect(folder / "state" / "journal.sqlite3")
            synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
            connection.close()
            them = asyncio.run(theirs(folder, synchronous))
            ratios.append(them / us)
            pairs.append((us, them))
    us, them = pairs[-1]
    note = f"{1 / us:.0f} calls/s against {1 / them:.0f} rows/s, synchronous={synchronous}, wall"
    return [
        judged(f"durable control calls, {CLIENTS} clients", "aiosqlite autocommit", ratios, at_least(30), note=note)
    ]


if __name__ == "__main__":
    report(main())
