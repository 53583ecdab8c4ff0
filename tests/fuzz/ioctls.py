"""Any ioctl with anything in it, over REST, beside running vCPUs: no answer of 500 and above, nobody waits 50 ms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
from typing import Any

import httpx

from kickstand.core.uapi import Fd, Ioctl
from kickstand.core.uapi.layout import Struct
from kickstand.runtime.table import DECLARED
from kickstand.scripts.differential.asks.form import number
from kickstand.scripts.differential.story import op
from kickstand.scripts.language.operations import DATA, ROOM, STRUCTURE
from tests.api.live import live
from tests.fuzz.found import Found
from tests.stopwatch import slowness, stopwatch

LONGEST_S = 0.050
SCRIPTS, OPERATIONS = 24, 3  # one operation that is none refuses its script
PATIENCE_S = 1.0  # then the client is gone: an ioctl of a vCPU that spins waits as long as it spins
SERVER_ERROR = 500
PAGE = 4096
# mov dword [0x8000], eax; inc eax; out 0x10, al; jmp back: it stores, and leaves KVM_RUN again and again
WORKS = "a300800000" + "40" + "e610" + "ebf6"
ABIS = tuple(found.abi for found in DECLARED if found.abi is not None and found.abi.fd is not Fd.SYSTEM)


def _value(rng: random.Random, old: object) -> Any:
    """Something for a field that had ``old``: most of the time of its type."""
    if rng.random() < 0.5:
        return rng.choice((None, "", "0xzz", -1, 1 << 64, 1.5, [], {}, "00" * 20_000, True))
    if isinstance(old, dict):
        return {name: _value(rng, member) for name, member in old.items()}
    if isinstance(old, list):
        return [_value(rng, member) for member in old]
    if isinstance(old, str) and not old.startswith("0x"):
        return rng.randbytes(len(old) // 2).hex()
    return rng.choice((number(rng), rng.getrandbits(8), DATA, STRUCTURE))


def _fields(rng: random.Random, payload: Struct) -> dict[str, Any]:
    """Values that fit, and few of them set; now and then what no structure can have."""
    data = rng.randbytes(payload.size) if rng.random() < 0.5 else bytes(payload.size)
    some = bytes(byte if rng.random() < 0.5 else 0 for byte in data)
    fields = payload.to_json(payload.unpack(some))
    if rng.random() < 0.2:
        name = rng.choice(sorted(fields))
        fields[name] = _value(rng, fields[name])
    return fields


def _bytes(rng: random.Random) -> str:
    """A structure: a small number first, as where a list follows, or anything."""
    head = rng.choice((b"", rng.getrandbits(4).to_bytes(8, "little"), rng.randbytes(8)))
    body = rng.randbytes(rng.choice((0, 4, 16, 40, 400, 4096, ROOM - 8)))
    return (head + (body if rng.random() < 0.7 else bytes(len(body)))).hex()


def _one(rng: random.Random, abi: Ioctl) -> dict[str, Any]:
    args: dict[str, Any] = {"name": abi.name}
    if abi.fd is Fd.VCPU:
        args["vcpu"] = rng.choice((0, 1, 1, 1, 7))
    kind = rng.randrange(3)
    if kind == 0:
        args["number"] = number(rng)
    elif kind == 1 and abi.payload is not None:
        args["fields"] = _fields(rng, abi.payload)
    else:
        args["hex"] = _bytes(rng)
    if rng.random() < 0.3:
        args["data"] = rng.randbytes(rng.choice((1, 8, 2048))).hex()
    return op("ioctl", **args)


def _begin(rng: random.Random) -> list[dict[str, Any]]:
    """VCPU 0 works for a thread of the server, vCPU 1 is asked."""
    operations = [
        op("arena", name="A", size=16 * PAGE),
        op("write_host", arena="A", offset=0x1000, hex=WORKS),
        op("set_memory_region", slot=0, flags=0, gpa=0, size=16 * PAGE, host={"arena": "A", "offset": 0}),
        *([op("create_irqchip")] if rng.random() < 0.5 else []),
        op("create_vcpu", id=0),
        op("create_vcpu", id=1),
    ]
    for vcpu in (0, 1):
        operations += [
            op("set_mp_state", vcpu=vcpu, mp_state="RUNNABLE"),
            op("set_sregs", vcpu=vcpu, preset="prot32"),
            op("set_regs", vcpu=vcpu, regs={"rip": 0x1000, "rsp": 0x7000, "rflags": 2}),
        ]
    return [*operations, op("start_thread", vcpu=0)]


async def _asked(client: httpx.AsyncClient, path: str, body: object) -> None:
    """A 500 says so; a client that has waited long enough is gone."""
    with contextlib.suppress(httpx.ReadTimeout):
        answer = await client.post(path, json=body, timeout=PATIENCE_S)
        if answer.status_code >= SERVER_ERROR:
            raise Found(f"{answer.status_code} {answer.text}\n{json.dumps(body)}")


class _Logged(logging.Handler):
    """What the server has logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def ioctls(seed: int) -> None:
    """One VM, some scripts of operations, each of them anything."""
    rng = random.Random(seed)
    logged = _Logged()
    logging.getLogger("kickstand").addHandler(logged)
    try:
        async with live() as server, server.client() as client:
            await client.post("/vms", json={"id": "one", "engine": "x86", "mode": rng.choice(("precise", "fast"))})
            await _asked(client, "/vms/one/script", _begin(rng))
            with stopwatch(threading.get_ident()) as watch:
                for _ in range(SCRIPTS):
                    script = [_one(rng, rng.choice(ABIS)) for _ in range(OPERATIONS)]
                    script += [op("run", vcpu=1, immediate_exit=True)] * rng.getrandbits(1)
                    slower = slowness()
                    await _asked(client, "/vms/one/script", script)
                    longest, what = watch.lap()
                    longest /= max(slower, slowness())
                    if longest > LONGEST_S:
                        raise Found(f"the loop was held for {longest * 1e3:.0f} ms by {what}\n{json.dumps(script)}")
            await client.delete("/vms/one")
            await asyncio.sleep(0)
    finally:
        logging.getLogger("kickstand").removeHandler(logged)
    if logged.records:
        raise Found("\n".join(logged.records))
