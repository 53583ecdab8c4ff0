"""What is fed, and what must hold: each target takes a seed and raises ``Found`` with what shows the fault again.

The same seed gives the same input, so that a finding is a line: `python -m tests.fuzz --target NAME --seed N`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

from kickstand.core.errors import KvmError
from kickstand.explore.evidence.tokens import TokenError
from kickstand.explore.matrix import explore, replay_token
from kickstand.explore.world.scenarios import ScenarioError
from kickstand.explore.world.scenarios.files import load as load_scenario
from kickstand.guests.x86.emulated.decoding.decode import decode, is_undefined, shape
from kickstand.journal import snapshot
from kickstand.runtime.events import EventLog
from kickstand.runtime.registry import Registry
from kickstand.scripts.differential.both import Differential
from kickstand.scripts.differential.mutate import Mutations
from kickstand.scripts.differential.story import op, page_tables
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import parse_operations
from kickstand.scripts.language.reader import load
from kickstand.scripts.language.script import parse_trace
from kickstand.settings import Limits
from tests.fuzz.found import Found
from tests.fuzz.ioctls import ioctls

RECORDED = Path(__file__).parents[1] / "golden" / "data"
LONGEST = 15  # bytes of an instruction
PAGE = 4096
TABLES, CODE = 0x8000, 0x1000


def device() -> str:
    """The other side: the real device where there is one, else the emulator once more, which must answer the same."""
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "x86"


async def differential(seed: int) -> None:
    """A generated script is answered alike on both sides."""
    await _alike(Differential("x86", device()), seed)


async def mutate(seed: int) -> None:
    """A recorded script with something changed, too."""
    await _alike(Differential("x86", device(), Mutations(_recorded())), seed)


@cache
def _recorded() -> list:
    return load([RECORDED])


async def _alike(sides: Differential, seed: int) -> None:
    _, finding = await sides.run(seed)
    if finding is not None and finding.quirk is None:
        raise Found("\n".join(finding.lines()))


async def decoder(seed: int) -> None:
    """Any bytes are decoded or not, whatever follows; what is decoded is not longer than they are."""
    rng = random.Random(seed)
    code = bytes(rng.choice((rng.randrange(256), 0x0F, 0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x48)) for _ in range(LONGEST))
    for bits in (16, 32, 64):
        decode(code, bits)
        shape(code, bits)
        is_undefined(code, bits)


async def paging(seed: int) -> None:
    """Page tables of anything: the guest ends up somewhere, and in the same place on both sides."""
    rng = random.Random(seed)
    tables = bytearray(page_tables())
    for _ in range(rng.choice((1, 2, 5, 40))):
        at = rng.randrange(len(tables) // 8) * 8
        entry = int.from_bytes(tables[at : at + 8], "little") ^ (1 << rng.randrange(64))
        tables[at : at + 8] = rng.choice((entry, rng.getrandbits(64), 0)).to_bytes(8, "little")
    address = rng.choice((0x2000, 0x20_0000, rng.getrandbits(25), rng.getrandbits(48), rng.getrandbits(64)))
    code = b"\x48\xb8" + address.to_bytes(8, "little") + rng.choice((b"\x8a\x08", b"\x88\x08")) + b"\xf4"
    value = [
        op("arena", name="A", size=16 * PAGE),
        op("write_host", arena="A", offset=TABLES, hex=bytes(tables).hex()),
        op("write_host", arena="A", offset=CODE, hex=code.hex()),
        op("set_memory_region", slot=0, flags=0, gpa=0, size=16 * PAGE, host={"arena": "A", "offset": 0}),
        op("create_vcpu", id=0),
        op("set_sregs", vcpu=0, preset="long64"),
        op("set_regs", vcpu=0, regs={"rip": CODE, "rsp": 0x7000, "rflags": 2}),
        op("run", vcpu=0),
        op("hash_host", arena="A"),
    ]
    sides = Differential("x86", device())
    finding = await sides._compare_to_spin(seed, parse_operations(value))
    if finding is not None and finding.quirk is None:
        raise Found("\n".join(finding.lines()))


@cache
def _token() -> str:
    [verdict] = explore("merge", "sticky", "well", properties=("lost_exit",))
    return verdict.counterexample.token


async def tokens(seed: int) -> None:
    """A token that somebody changed replays, or is refused in words."""
    rng = random.Random(seed)
    good = await asyncio.to_thread(_token)  # the explorer runs loops of its own
    with contextlib.suppress(TokenError):
        await asyncio.to_thread(replay_token, _spoilt(good.encode(), rng).decode("latin-1"))


@cache
def _snapshot_of_one() -> list[bytes]:
    return []


async def snapshots(seed: int) -> None:
    """A snapshot that somebody changed comes back, or is refused with an errno; nothing of it is left then."""
    registry = Registry(Limits(memory_per_vm=1 << 24), EventLog(256))
    if not _snapshot_of_one():
        machine = await registry.create("one", vcpus=2, programs=[[["write", 4096, 1], ["spin"]]])
        await machine.allocate_memory(4 * PAGE, "ram")
        with await snapshot.take(machine, None) as file:
            file.seek(0)
            _snapshot_of_one().append(file.read())
        await registry.destroy("one")
    data = _spoilt(_snapshot_of_one()[0], random.Random(seed))
    try:
        await snapshot.bring_back(registry, io.BytesIO(data), "two")
    except KvmError:
        if registry.machines:
            raise Found("a snapshot that was refused has left a machine") from None
    await registry.reset()


async def scripts(seed: int) -> None:
    """Any JSON is a script, or refused as none."""
    rng = random.Random(seed)
    text = _spoilt(json.dumps([{"op": "run", "args": {"vcpu": 0, "reply": "00"}}] * 3).encode(), rng)
    with contextlib.suppress(ValueError, RecursionError, ScriptError):
        parse_trace(json.loads(text), "fuzz")


async def scenarios(seed: int) -> None:
    """Any YAML is a scenario, or refused as none."""
    rng = random.Random(seed)
    text = (Path(__file__).parents[2] / "examples" / "grow_too_late.yaml").read_bytes()
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(_spoilt(text, rng))
        file.flush()
        with contextlib.suppress(ScenarioError):
            load_scenario(file.name)


def _spoilt(data: bytes, rng: random.Random) -> bytes:
    """The same with some bytes changed, cut out, doubled or put in."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.choice((1, 1, 2, 4, 64)))
        kind = rng.randrange(4)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at:end]
        elif kind == 2:
            made[at:at] = made[at:end]
        else:
            made[at:at] = rng.choice((rng.randbytes(3), b"-1", b"9" * 40, b"[[[", b'""', b"\xff"))
        if not made:
            made = bytearray(b"0")
    return bytes(made)


TARGETS: dict[str, Callable[[int], Awaitable[None]]] = {
    target.__name__: target
    for target in (differential, mutate, ioctls, decoder, paging, tokens, snapshots, scripts, scenarios)
}
