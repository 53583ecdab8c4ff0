"""Damage a state directory in every way there is, start on it, and see that only what is damaged is not served.

    python -m tests.journal.disk.damage 500

A directory with several VMs is left by a crash and by a clean end. Then, one at a time: a bit flips in each column of
each kind of row, rows go, come twice or hold something else; every file is flipped, cut off, emptied, removed, or is a
directory or a link; files that are nobody's lie about. Each start must end with a sentence (exit 1) or serve every VM
that the damage does not concern exactly as an undamaged start would; what is not served was told, and is still there.
"""

import asyncio
import hashlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kickstand.api import context as module
from kickstand.journal.disk import directory, schema
from kickstand.journal.records import Recorder
from kickstand.settings import Settings, SettingsError

PAGE = 4096
BASE = 0x7F00_0000_0000
KEYS = {"state": ("vm", "part"), "meta": ("key",), "events": ("last",)}


async def started(settings):
    """A server's insides, and what its start warned of. ``SettingsError``: it does not start."""
    warned = []
    original, module.warn = module.warn, warned.append
    try:
        context = module.Context(settings)
        await context.start()
    finally:
        module.warn = original
    return context, warned


def on(path):
    """Settings for a state directory."""
    return Settings(ephemeral=False, state_dir=path, default_vm=False)


def portraits(context):
    """Everything of every VM: what would be written of it, and its memory."""
    return {machine.id: portrait(machine) for machine in context.registry.machines.values()}


def portrait(machine):
    """One VM; which events there were before is not part of it."""
    parts = {name: json.loads(value) for name, value in Recorder(machine).whole().items()}
    memory = [hashlib.sha256(arena.buffer).hexdigest() for arena in machine.memory.arenas]
    return without_clocks(parts), memory


def without_clocks(parts):
    """The parts of a machine without what moves by itself."""
    parts.get("interrupts", {}).pop("time", None)
    parts.get("clock", {}).pop("ns", None)
    for name, part in parts.items():
        if name.startswith("cpu/"):
            part["guest"].get("model", {}).pop("tsc", None)
    return parts


async def populate(path):
    """VMs of every kind, with something of everything."""
    context, _ = await started(on(path))
    registry = context.registry
    for number, (engine, variant) in enumerate([("script", "sticky"), ("x86", "holds"), ("script", "signal")]):
        machine = await registry.create(f"vm-{number}", vcpus=2, engine=engine, variant=variant, irqchip=number == 2)
        arena = await machine.allocate_memory(4 * PAGE, "ram")
        await machine.allocate_memory(PAGE, "", b"\x5a")
        await machine.set_user_memory_region(_region(arena))
        await machine.set_regs(1, {"rax": 77 + number})
        if engine == "script":
            await machine.set_program(0, [["write", PAGE, 1], ["in", 96], ["spin"]])
            await machine.run(0)
        await machine.start_thread(1)
        await machine.kick()
    await registry.create("bare")
    return context


def _region(arena):
    from kickstand.core.memslots import Region

    return Region(0, 1, 0, arena.size, arena.base)


# -- ways to damage ------------------------------------------------------------------------------------------


@dataclass
class Damage:
    """What was done; ``vms`` are those that may be missing afterwards, None: any; ``older``: they may be older."""

    what: str
    vms: frozenset | None = None
    older: bool = False


def flip(data, rng):
    """One bit is another one."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def owner(path, uid):
    with closing(sqlite3.connect(path / "journal.sqlite3")) as connection:
        row = connection.execute("SELECT value FROM state WHERE vm = ? AND part = 'vm'", (uid,)).fetchone()
        return json.loads(row[0])["id"]


def rows(path):
    with closing(sqlite3.connect(path / "journal.sqlite3")) as connection:
        return [
            (table, row)
            for table, keys in KEYS.items()
            for row in connection.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
        ]


def damage_row(path, rng, table, key):
    """One row of the journal is not what it was."""
    columns = (*schema.TABLES[table], "sum")
    where = " AND ".join(f"{name} = ?" for name in KEYS[table])
    concerns = frozenset({owner(path, key[0])}) if table == "state" else frozenset()
    column = rng.choice([*columns, None])
    if (table, column) == ("state", "vm"):
        concerns = None if len(key) < 2 else concerns | frozenset()
    with closing(sqlite3.connect(path / "journal.sqlite3", isolation_level=None)) as connection:
        if column is None:
            connection.execute(f"DELETE FROM {table} WHERE {where}", key)
            return Damage(f"{table} {key}: deleted", concerns)
        (old,) = connection.execute(f"SELECT {column} FROM {table} WHERE {where}", key).fetchone()
        new = other(old, rng)
        try:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (new, *key))
        except (sqlite3.IntegrityError, OverflowError, UnicodeEncodeError):
            return None
    return Damage(f"{table} {key}: {column} {str(old)[:20]!r} is {str(new)[:20]!r}", concerns)


def other(value, rng):
    """A value with a flipped bit, or something else altogether."""
    pick = rng.randrange(5)
    if pick == 0:
        return rng.choice([0, -1, "", "x", b"", b"[]", b"{}", 1 << 40])
    if isinstance(value, int):
        return value ^ 1 << rng.randrange(40)
    if isinstance(value, float):
        return value + 1
    if isinstance(value, str):
        return flip(value.encode(), rng).decode(errors="replace") if value else "x"
    return flip(value, rng) if value else b"x"


def damage_file(path, rng, name, how):
    """One file is not what it was."""
    file = path / name
    before = file.read_bytes() if file.is_file() else b""
    memory = name.startswith("memory/")
    vms = None
    if memory:
        vms = frozenset({owner_of_arena(path, file.name)})
    if how == "flip":
        if memory or not before:
            return None  # what a guest has written has no checksum
        file.write_bytes(flip(before, rng))
    elif how == "cut":
        if not before:
            return None
        os.truncate(file, rng.randrange(len(before)))
    elif how == "empty":
        if not before:
            return None
        os.truncate(file, 0)
    else:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        if how == "directory":
            file.mkdir()
            (file / "something").write_bytes(b"x")
        elif how == "link":
            file.symlink_to(path / "elsewhere")
    return Damage(f"{name}: {how}", vms, older="-wal" in name or name == "journal.sqlite3")


OWNERS = {}


def owner_of_arena(path, name):
    return OWNERS[name]


def add_foreign(path, rng):
    """Something lies about that is nobody's."""
    name = rng.choice(
        ["memory/foreign", "memory/77-0", "memory/1-9", "notes.txt", "damaged", "journal.sqlite3-journal"]
    )
    (path / name).write_bytes(b"foreign" * 100)
    return Damage(f"{name}: foreign", frozenset())


HOWS = ("flip", "flip", "cut", "empty", "remove", "directory", "link")
FLIPS = 60  # of each of the files that everything stands in


def damages(path, rng):
    """Every single damage of a directory, each as a function that does it and says what."""
    every = [lambda p, table=table, key=key: damage_row(p, rng, table, key) for table, key in rows(path)]
    files = [str(file.relative_to(path)) for file in path.rglob("*") if "damaged" not in str(file)]
    every += [lambda p, name=name, how=how: damage_file(p, rng, name, how) for name in files for how in HOWS]
    every += [lambda p, name=name: damage_file(p, rng, name, "flip") for name in files if "sqlite3" in name] * FLIPS
    every += [lambda p: add_foreign(p, rng)] * 6
    rng.shuffle(every)
    return every


# -- starting on it ------------------------------------------------------------------------------------------


async def attempt(image, copy, do, whole):
    """Damage a copy and start on it. Returns what came of it; ``AssertionError``: not what must."""
    shutil.copytree(image, copy, symlinks=True)
    before = memory_of(copy)  # of VMs: what lies about under such a name is taken for what a crash has left
    damage = do(copy)
    if damage is None:
        return "nothing to damage"
    before &= memory_of(copy)
    try:
        context, warnings = await started(on(copy))
    except SettingsError as error:
        show(damage, error)
        return "refused" if "\n" not in str(error) else "refused with more than a sentence"
    try:
        found = portraits(context)
        missing = set(whole) - set(found)
        assert damage.vms is None or missing <= damage.vms, (damage, missing, warnings)
        assert not missing or warnings, (damage, missing)
        assert set(found) <= set(whole), (damage, set(found) - set(whole))
        changed = {vm for vm, of in found.items() if of != whole[vm]}
        statistics = "counters" in damage.what  # a VM without them is whole
        assert not changed or statistics or (damage.older and warnings), (damage, changed, warnings)
        assert before <= memory_of(copy), (damage, warnings)
        await read_history(context, damage)
    finally:
        await context.stop()
    show(damage, missing, changed, warnings)
    return "served with a warning" if warnings else "served"


async def read_history(context, damage):
    """Every event is there, or in a hole that is told."""
    after, last = 0, context.registry.log.seq
    while (batch := await context.journal.read(after)) is not None:
        assert batch.records[0].seq == after + batch.lost + 1
        after = batch.records[-1].seq
    assert after <= last, damage


def show(*what):
    """For a person who wants to see what is told."""
    if os.environ.get("DAMAGE_SHOW"):
        print(*what)  # noqa: T201


def memory_of(path):
    """The content of every file of host memory, wherever it is by now."""
    return Counter(
        hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file() and not file.is_symlink() and directory.ARENA.fullmatch(file.name)
    )


async def run(limit, seed, folder, say=print):
    """Try ``limit`` damages on what a crash leaves and on what a clean end leaves; the counts."""
    rng = random.Random(seed)
    context = await populate(folder / "state")
    await asyncio.sleep(0.3)  # the events are kept, too
    shutil.copytree(folder / "state", folder / "crashed")
    await context.stop()
    counts = Counter()
    for image in (folder / "state", folder / "crashed"):
        fresh, _ = await started(on(shutil.copytree(image, folder / f"whole-{image.name}")))
        whole = portraits(fresh)
        OWNERS.update(
            {arena: kept.recorder.machine.id for kept in fresh.journal._kept.values() for arena in kept.arenas.names}
        )
        await fresh.stop()
        assert len(whole) == 4, whole.keys()
        for number, do in enumerate(damages(image, rng)[: limit // 2]):
            copy = folder / f"{image.name}-{number}"
            counts[await attempt(image, copy, do, whole)] += 1
            shutil.rmtree(copy)
        say(f"{image.name}: {sum(counts.values())} damages")
    return dict(counts)


def main():
    """Try as many as the command line says."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    print(f"seed {seed}")  # noqa: T201  a command
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(run(limit, seed, Path(folder)))))  # noqa: T201


if __name__ == "__main__":
    main()
