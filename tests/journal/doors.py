"""What a client may send, a state directory can write, read and restore: random calls, a crash, a restart.

    python -m tests.journal.doors 100

Calls are drawn from the OpenAPI schema, and from examples of each body with one value replaced by another kind of
value (``1`` for ``true``, a lone surrogate, nothing, a number without end): what the server refuses is of no interest,
what it accepts must be there after a crash, all of it. Calls are repeated, too, far beyond what anybody would: a limit
that only one side knows is found like that.
"""

import asyncio
import contextlib
import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schemathesis import GenerationMode

from kickstand.core.shared.requests import Request
from kickstand.core.variants.holds import MOST_HOLDS
from kickstand.journal.records import Recorder
from kickstand.main import create_app
from kickstand.settings import JournalSettings, Limits, Settings
from tests.journal.disk.damage import started, without_clocks

PAGE = 4096
BASE = "0x7f0000000000"
RAM = 16 * PAGE
VMS = ("a", "b", "c", "d")
LIMITS = Limits(
    vms=16, memory_per_vm=1 << 20, run_timeout_ms=20, explorations=0, body=32 << 20, script_operations=200_000
)
JOURNAL = JournalSettings(progress_s=0.05)
SKIPPED = ("/explorations", "/events", "/reset", "/metrics", "/static", "/session", "/vms/restore", "/trace")
# Neither is kept as it was: the window that a restart opens, and what the server does by itself meanwhile.
OPENED = Request.USERSPACE_KICK.bit
ODD = (
    None, True, False, 0, 1, -1, 3, 0.5, 255, 256, 1 << 31, 1 << 32, 1 << 53, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30,
    "", "x", "1", "0x10", "true", "\ud800", "\x00", "é", "n" * 200, [], [1], [[]], [None], {}, {"x": 1},
    [0] * 5, float("inf"),
)  # fmt: skip
PROGRAM = [["write", PAGE, 7], ["in", 96], ["choose", [["out", 96, 9]], [["compute", 3]]], ["spin"]]
REGION = {"flags": 1, "guest_phys_addr": 0, "memory_size": RAM, "userspace_addr": BASE}
SWITCHES = {"rwsem_steal": True, "killable": False, "exit_test": "after_r"}
"""Bodies that are accepted, by the end of the path: where they begin."""
EXAMPLES = {
    ("POST", "/vms"): [
        {"vcpus": 2, "variant": variant, "engine": engine, "switches": SWITCHES, "seed": 7, "irqchip": False} | more
        for variant, engine, more in (
            ("holds", "script", {"id": "d", "programs": {"0": PROGRAM}}),
            ("sticky", "x86", {}),
            ("signal", "script", {"programs": [PROGRAM, None]}),
        )
    ],
    ("POST", "/kick"): [{"timeout_ms": 500}],
    ("POST", "/host-memory"): [{"size": RAM, "name": "ram", "fill": "cafe"}, {"size": PAGE, "fill": 255}],
    ("PUT", "/memory-regions/{slot}"): [REGION, {"memory_size": 0}],
    ("POST", "/memory-transaction"): [
        {"operations": [{"slot": 3, **REGION, "guest_phys_addr": RAM}], "protect": "list"}
    ],
    ("POST", "/dirty-log/{slot}/clear"): [{"first_page": 0, "num_pages": 16, "bits": [1, 3]}],
    ("POST", "/irq-line"): [{"irq": 4, "level": 1}],
    ("POST", "/msi"): [{"address": 0xFEE00000, "data": 0x31}],
    ("POST", "/vcpu"): [{"id": 7, "program": PROGRAM}, {"id": 8}],
    ("POST", "/run"): [{"timeout_ms": 5, "immediate_exit": True}, {"timeout_ms": 5}, {"reply": "2a", "timeout_ms": 5}],
    ("PUT", "/regs"): [{"rax": 5, "rflags": 2}, {"rip": "0x1"}],
    ("PUT", "/sregs"): [
        {"cr3": 4096, "cs": {"base": 0, "selector": 8, "type": 11}, "interrupt_bitmap": [0, 1, 0, 0]},
        {"gdt": {"limit": 7}, "efer": "0x0"},
    ],
    ("PUT", "/mp-state"): [{"mp_state": "HALTED"}, {"mp_state": 0}],
    ("POST", "/interrupt"): [{"vector": 32}],
    ("PUT", "/program"): [PROGRAM, [["hlt"]]],
    ("POST", "/start"): [{"behaviour": "well", "handle_exits": True}],
    ("POST", "/script"): [
        [
            {"op": "arena", "args": {"name": "r2", "size": PAGE}},
            {"op": "set_sregs", "args": {"vcpu": 0, "changes": {"cs": {"base": 5}, "interrupt_bitmap": [1, 2]}}},
            {"op": "set_run_flag", "args": {"vcpu": 0, "flag": "immediate_exit", "value": 1}},
            {"op": "change_regs", "args": {"vcpu": 1, "regs": {"rbx": 9}}},
            {"op": "set_mp_state", "args": {"vcpu": 1, "mp_state": "HALTED"}},
            {"op": "nmi", "args": {"vcpu": 1}},
            {"op": "signal", "args": {"vcpu": 1}},
        ],
        [{"op": "set_sregs", "args": {"vcpu": 0, "changes": {"cs": {"limit": 9, "l": 1}}}}],
        [{"op": "create_vcpu", "args": {"id": 9, "program": [["hlt"]]}}],
    ],
}  # fmt: skip
FLOODS = {
    "kick": [{"op": "kick"}] * (MOST_HOLDS + 100),
    "arenas": [{"op": "arena", "args": {"name": f"f{number}", "size": 1}} for number in range(300)],
}


# -- drawing calls -------------------------------------------------------------------------------------------


@cache
def operations():
    """The schema's operations that change something, each with a strategy for what the schema allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_dict(create_app(Settings(ephemeral=True)).openapi())
        found = [result.ok() for result in schema.get_all_operations()]
    return [
        (each.method.upper(), each.path, each.as_strategy(generation_mode=GenerationMode.POSITIVE))
        for each in found
        if each.path.startswith("/vms") and not each.path.endswith(SKIPPED) and each.method.upper() != "GET"
    ]


def examples_of(method, path):
    """Where the bodies of an operation begin."""
    for (of, end), bodies in EXAMPLES.items():
        if of == method and path.endswith(end) and (end != "/vcpu" or path.endswith("{vm}/vcpu")):
            return bodies
    return None


def leaves(tree, path=()):
    """The path of every value in a body."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def replaced(tree, path, value):
    """The body with another value there."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


@st.composite
def calls(draw, every):
    """Method, path, query, body, and how often."""
    method, path, strategy = draw(st.sampled_from(every))
    examples = examples_of(method, path)
    query, drawn = {}, draw(strategy).path_parameters or {}
    if examples is None or draw(st.integers(0, 3)) == 0:
        case = draw(strategy)
        body, query = case.body, dict(case.query or {})
        body = None if type(body).__name__ == "NotSet" else body
    else:
        body = draw(st.sampled_from(examples))
        if draw(st.booleans()):
            body = replaced(body, draw(st.sampled_from(list(leaves(body)))), draw(st.sampled_from(ODD)))
    aimed = {
        "vm": draw(st.sampled_from(VMS)),
        "id": draw(st.sampled_from((0, 0, 1, 7))),
        "slot": draw(st.integers(0, 3)),
    }
    aimed["userspace_addr"] = draw(st.sampled_from((BASE, "0x7f0000001000")))
    return method, path.format(**{**drawn, **aimed}), query, body, draw(st.sampled_from((1, 1, 1, 2, 5)))


# -- one life ------------------------------------------------------------------------------------------------


async def prepare(client):
    """Something to call."""
    for name, options in (("a", {"variant": "holds"}), ("b", {"engine": "x86"}), ("c", {"variant": "sticky"})):
        await client.post("/vms", json={"id": name, "vcpus": 2, **options})
        await client.post(f"/vms/{name}/host-memory", json={"size": RAM, "name": "ram"})
        await client.put(f"/vms/{name}/memory-regions/0", json=REGION)


async def call(client, counts, method, path, query, body, times, *, wait=0.5):
    """Send it, as often as it is accepted."""
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    for _ in range(times):
        headers = {"Content-Type": kind}
        try:
            async with asyncio.timeout(wait):
                answer = await client.request(method, path, params=query, content=content, headers=headers)
        except TimeoutError:  # it waits for somebody, as an ioctl may
            counts["given up"] += 1
            return
        assert answer.status_code != 500, (method, path, body, answer.text)
        counts["accepted" if answer.status_code < 400 else "refused"] += 1
        if answer.status_code >= 400:
            return


def portrait(machine, *, still):
    """All that is kept of a machine, in words of the files; None for what guests are changing now."""
    try:
        parts = {name: json.loads(value) for name, value in Recorder(machine).whole().items()}
    except ValidationError as error:
        raise AssertionError(f"{machine.id} cannot be kept: {error}") from error
    without_clocks(parts)
    parts.pop("counters")  # statistics, which are kept now and then
    vm = parts.pop("vm")
    still = still and not vm["running"]  # else every page that could be written counts as dirty afterwards
    for moving in ("kick_id", "running", "files"):
        del vm[moving]
    vm["requests"] = [bits & ~OPENED for bits in vm["requests"]]
    if machine.variant != "holds":
        del vm["window"]
    programs = {vcpu.id: vcpu.guest.source for vcpu in machine.vm.vcpus.values()}
    memory = [hashlib.sha256(arena.buffer).hexdigest() for arena in machine.memory.arenas]
    return vm, programs, parts if still else None, memory if still else None


async def seen(client, machine):
    """What the API shows of it: every GET answers."""
    path, found = f"/vms/{machine.id}", {}
    gets = [path, f"{path}/memory-regions", f"{path}/locks", f"{path}/vcpu"]
    for vcpu in machine.vm.vcpus:
        gets += [f"{path}/vcpu/{vcpu}/{what}" for what in ("regs", "sregs", "mp-state")]
    for get in gets:
        answer = await client.get(get)
        assert answer.status_code == 200, (get, answer.text)
        found[get] = answer.json() if get.endswith(("regs", "mp-state", "regions")) else None
    return found


async def settle(client, registry, counts):
    """Everybody out of KVM_RUN, as a restart leaves them; the VMs whose vCPUs stay out, under any variant."""
    still = set()
    for machine in tuple(registry.machines.values()):
        answer = await client.post(f"/vms/{machine.id}/kick", json={"timeout_ms": 10_000})
        assert answer.status_code in (200, 409, 504), answer.text  # 409: there are as many holds as there may be
        guests = any(thread.running for thread in machine.threads.values()) or len(machine.runs)
        if answer.status_code != 504 and (machine.vm.variant.open_windows or not guests):
            still.add(machine.id)
    await asyncio.sleep(0.02)
    counts["still"] += len(still)
    counts["moving"] += len(registry.machines) - len(still)
    return still


async def look(client, registry, still):
    """Portraits of all machines. ``AssertionError``: there is one that cannot be kept."""
    return {
        machine.id: (portrait(machine, still=machine.id in still), await seen(client, machine))
        for machine in registry.machines.values()
    }


@contextlib.asynccontextmanager
async def serving(app, path):
    """The application on a state directory, without a socket; and what its start warned of."""
    options = Settings(ephemeral=False, state_dir=path, limits=LIMITS, journal=JOURNAL, default_vm=False)
    context, warned = await started(options)
    app.state.context = context
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield client, context.registry, warned
    finally:
        await context.stop()


async def life(app, folder, draw, number, counts, *, wait=0.5):
    """A server that is called ``number`` times, crashes, and comes back. ``AssertionError``: as another one."""
    made = []
    async with serving(app, folder / "state") as (client, registry, _):
        await prepare(client)
        for _ in range(number):
            made.append(draw())
            await call(client, counts, *made[-1], wait=wait)
        still = await settle(client, registry, counts)
        before = await look(client, registry, still)
        shutil.copytree(folder / "state", folder / "crashed")
    async with serving(app, folder / "crashed") as (client, registry, warned):
        assert not warned, (warned, made)
        compare(before, await look(client, registry, still), made)
    counts["lives"] += 1


def compare(before, after, made):
    """Every VM is as it was."""
    assert set(after) == set(before), (set(before) ^ set(after), made)
    for vm, (kept, shown) in before.items():
        for old, new in zip(kept, after[vm][0], strict=True):
            assert old is None or new is None or old == new, f"{vm}: {difference(old, new)} after {made!r:.2000}"
        if kept[2] is not None:
            assert shown == after[vm][1], f"{vm}: {difference(shown, after[vm][1])} after {made!r:.2000}"


def difference(old, new, path=""):
    """Where two values begin to differ."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return next(difference(old[key], new[key], f"{path}/{key}") for key in old if old[key] != new[key])
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return next(
            difference(*pair, f"{path}/{at}")
            for at, pair in enumerate(zip(old, new, strict=True))
            if len({*map(repr, pair)}) > 1
        )
    return f"{path}: {old!r:.200} is {new!r:.200}"


def run(lives, *, number=25, only=""):
    """Live so often; the counts. ``AssertionError``, with the calls that show it: something did not come back."""
    app, counts = create_app(Settings(ephemeral=True)), Counter()
    every = [operation for operation in operations() if operation[1].endswith(only)]

    @settings(
        max_examples=lives, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize="DOORS_RANDOM" not in os.environ,
    )  # fmt: skip
    @given(data=st.data())
    def lived(data):
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(life(app, Path(folder), lambda: data.draw(calls(every)), number, counts))

    lived()
    return dict(counts)


def flood():
    """Call the same thing far more often than anybody would; the counts."""
    app, counts = create_app(Settings(ephemeral=True)), Counter()
    floods = iter([("POST", "/vms/a/script", {}, operations, 1) for operations in FLOODS.values()])
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(life(app, Path(folder), lambda: next(floods), len(FLOODS), counts, wait=60))
    return dict(counts)


def main():
    """Live as often as the command line says."""
    lives = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(json.dumps({"random": run(lives), "flood": flood()}))  # noqa: T201  a command


if __name__ == "__main__":
    main()
