"""No request holds the loop: every operation of the schema is asked at its largest, and each turn of the loop is timed.

The figure is CPU time of the loop's thread in one callback, so that a busy machine does not count. The short form is
part of the suite; ``KICKSTAND_WATCHDOG=all`` asks for all that the limits allow and prints a table (``-s``).
"""

import asyncio
import gc
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kickstand.core.memslots import Region
from kickstand.guests.program import MOST_STEPS
from kickstand.settings import Limits
from tests.api.schema.test_schema import Client
from tests.long import LONG
from tests.stopwatch import slowness, stopwatch

ALL = LONG or os.environ.get("KICKSTAND_WATCHDOG") == "all"
LONGEST_S = 0.050
VCPUS = 1_024 if ALL else 128
SLOTS = 32_000 if ALL else 1_000
DIRTY = 1 << (20 if ALL else 16)
OPERATIONS = 4_096 if ALL else 512
SCRIPT = 10_000 if ALL else 1_000
MEMORY = 1 << (31 if ALL else 26)
BODY = 16 << 20
JSON_BODY = 4 << 20
PAGE = 4096
VM = "/vms/big"
RAM = 0x7F00_0000_0000
JSON = {"Content-Type": "application/json"}
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1_200)]


def region(slot, gpa, size=PAGE, flags=0):
    return {"slot": slot, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": RAM, "flags": flags}


def values(unit, count):
    """A text of so many values."""
    return b"[" + b",".join([unit] * count) + b"]"


FAR = 1 << 40
NEW = [region(slot, FAR + slot * PAGE) for slot in range(32_760 - OPERATIONS, 32_760)]
GONE = [{"slot": operation["slot"], "memory_size": 0} for operation in NEW]
PROGRAM = [["write", n * 8, n] for n in range(MOST_STEPS)]
OPS = [{"op": "get_regs", "args": {"vcpu": n % 8}} for n in range(SCRIPT)]
READS = [
    {"op": "arena", "args": {"name": "w", "size": 16 << 20}},
    {"op": "write_host", "args": {"arena": "w", "offset": 0, "hex": "5a" * (3 << 19)}},
    *[{"op": "read_host", "args": {"arena": "w", "offset": 0, "length": 1 << 20}} for _ in range(4)],
    {"op": "hash_host", "args": {"arena": "w"}},
    {"op": "fill_pattern", "args": {"arena": "w"}},
    {"op": "fill_host", "args": {"arena": "w", "offset": 0, "length": 16 << 20, "byte": 3}},
]
# operationId: requests, in order; deletions come last.
LARGEST = {
    "get_root": [("GET", "/", None)],
    "get_docs": [("GET", "/docs", None)],
    "get_kvm": [("GET", "/kvm", None)],
    "healthz": [("GET", "/healthz", None)],
    "readyz": [("GET", "/readyz", None)],
    "metrics": [("GET", "/metrics", None)],
    "create_session": [("POST", "/session", {"code": "c" * 256})],
    "list_explorations": [("GET", "/explorations", None)],
    "start_exploration": [
        ("POST", "/explorations", {"variants": ["sticky"] * 64, "behaviours": ["well"] * 64}),
        ("POST", "/explorations", {"variants": ["x"] * 40_000}),
        ("POST", "/explorations", {"vcpus": 4, "vmms": 2, "max_states": 1}),
    ],
    "get_exploration": [("GET", "/explorations/x1", None)],
    "delete_exploration": [("DELETE", "/explorations/x1", None), ("DELETE", "/explorations/x2", None)],
    "create_vm": [
        ("POST", "/vms", {"id": "many", "vcpus": VCPUS, "programs": [[["read", 0], ["hlt"]]] * VCPUS}),
        ("DELETE", "/vms/many", None),
        ("POST", "/vms", values(b"{}", 60_000)),
        ("POST", "/vms", b'{"id":"' + b"x" * (JSON_BODY - 20) + b'"}'),
        ("POST", "/vms", {f"x{n}": n for n in range(1_000)}),
    ],
    "list_vms": [("GET", "/vms", None)],
    "get_vm": [("GET", VM, None)],
    "list_vcpus": [("GET", f"{VM}/vcpu?limit=10000", None)],
    "create_vcpu": [("POST", f"{VM}/vcpu", {"id": 4_000, "program": PROGRAM})],
    "get_vcpu": [("GET", f"{VM}/vcpu/0", None)],
    "get_regs": [("GET", f"{VM}/vcpu/0/regs", None)],
    "set_regs": [
        ("PUT", f"{VM}/vcpu/0/regs", {"rax": "0x" + "f" * (JSON_BODY - 100)}),
        ("PUT", f"{VM}/vcpu/0/regs", {"rax": 1}),
    ],
    "get_sregs": [("GET", f"{VM}/vcpu/0/sregs", None)],
    "set_sregs": [
        ("PUT", f"{VM}/vcpu/0/sregs", {"cs": {"base": 0}}),
        ("PUT", f"{VM}/vcpu/0/sregs", values(b"1", 130_000)),
    ],
    "get_supported_cpuid": [("GET", "/kvm/cpuid", None)],
    "get_cpuid": [("GET", f"{VM}/vcpu/0/cpuid", None)],
    "set_cpuid": [("PUT", f"{VM}/vcpu/0/cpuid", {"entries": [{"function": 0}] * 60_000})],
    "get_msrs": [("GET", f"{VM}/vcpu/0/msrs?index=16", None)],
    "set_msrs": [
        ("PUT", f"{VM}/vcpu/0/msrs", {"msrs": [{"index": 16, "data": 0}] * 255}),
        ("PUT", f"{VM}/vcpu/0/msrs", {"msrs": [{}] * 60_000}),
    ],
    "get_mp_state": [("GET", f"{VM}/vcpu/0/mp-state", None)],
    "set_mp_state": [("PUT", f"{VM}/vcpu/0/mp-state", {"mp_state": "x" * 1_000_000})],
    "interrupt": [("POST", f"{VM}/vcpu/0/interrupt", {"vector": 32})],
    "nmi": [("POST", f"{VM}/vcpu/0/nmi", None)],
    "signal": [("POST", f"{VM}/vcpu/0/signal", None)],
    "run": [
        ("POST", f"{VM}/vcpu/0/run", {"timeout_ms": 5}),
        ("POST", f"{VM}/vcpu/0/run", values(b"[]", 60_000)),
        ("POST", f"{VM}/vcpu/0/run", {"reply": "5a" * (2 << 20)}),
    ],
    "set_program": [
        ("PUT", f"{VM}/vcpu/1/program", PROGRAM),
        ("PUT", f"{VM}/vcpu/1/program", values(b'["read",1]', 40_000)),
        ("PUT", f"{VM}/vcpu/1/program", b"[" * 190 + b"]" * 190),
        ("PUT", f"{VM}/vcpu/1/program", [["hlt"]]),
    ],
    "start": [("POST", f"{VM}/vcpu/2/start", {"behaviour": "careless"})],
    "kick": [("POST", f"{VM}/kick", {"timeout_ms": 60_000})],
    "resume": [("POST", f"{VM}/resume", None)],
    "stop": [("POST", f"{VM}/vcpu/2/stop", None)],
    "get_locks": [("GET", f"{VM}/locks", None)],
    "create_irqchip": [("POST", f"{VM}/irqchip", None)],
    "irq_line": [("POST", f"{VM}/irq-line", {"irq": 1, "level": 1})],
    "signal_msi": [("POST", f"{VM}/msi", {"data": 1})],
    "create_host_memory": [
        ("POST", f"{VM}/host-memory", {"size": MEMORY, "fill": "pattern", "name": "filled"}),
        ("POST", f"{VM}/host-memory", {"size": PAGE, "fill": "ab" * 2_000_000}),
    ],
    "write_host_memory": [("PUT", f"{VM}/host-memory/{hex(RAM)}", bytes(range(256)) * (BODY // 256))],
    "read_host_memory": [("GET", f"{VM}/host-memory/{hex(RAM)}?length={BODY}", None)],
    "list_memory_regions": [("GET", f"{VM}/memory-regions", None)],
    "set_memory_region": [("PUT", f"{VM}/memory-regions/32761", region(32_761, FAR, PAGE << 19))],
    "delete_memory_region": [("DELETE", f"{VM}/memory-regions/32761", None)],
    "memory_transaction": [
        ("POST", f"{VM}/memory-transaction", {"operations": NEW, "protect": "kick"}),
        ("POST", f"{VM}/memory-transaction", {"operations": GONE, "protect": "none"}),
        ("POST", f"{VM}/memory-transaction", {"operations": NEW, "protect": "list"}),
        ("POST", f"{VM}/memory-transaction", {"operations": GONE, "protect": "list"}),
        ("POST", f"{VM}/memory-transaction", {"operations": [*NEW, NEW[0] | {"flags": 64}][1:], "protect": "kick"}),
        ("POST", f"{VM}/memory-transaction", b'{"operations":' + values(b"{}", 65_000) + b"}"),
        ("POST", f"{VM}/memory-transaction", b'{"operations":' + values(b"{}", 2_000_000) + b"}"),
    ],
    "get_dirty_log": [("GET", f"{VM}/dirty-log/0", None)],
    "clear_dirty_log": [
        ("POST", f"{VM}/dirty-log/1/clear", {"num_pages": 1 << 21, "bits": [page * 10 for page in range(100_000)]}),
        ("POST", f"{VM}/dirty-log/1/clear", None),
    ],
    "play_script": [
        ("POST", f"{VM}/script", OPS),
        ("POST", f"{VM}/script", [{"op": "kick", "args": {}}, *[{"op": "nothing"}] * 20_000]),
        ("POST", f"{VM}/script", [{"op": "set_program", "args": {"vcpu": 1, "program": PROGRAM}}]),
        ("POST", f"{VM}/script", [{"op": "memory_transaction", "args": {"operations": [
            {"slot": 9, "flags": 0, "gpa": FAR, "size": 0, "host": {"abs": RAM}}] * 1_000}}]),
        ("POST", f"{VM}/script", READS),
    ],
    "get_trace": [("GET", f"{VM}/trace?format={kind}", None) for kind in ("script", "chrome", "ftrace", "perfetto")],
    "stream_all": [("STREAM", "/events", None)],
    "stream_vm": [("STREAM", f"{VM}/events", None), ("STREAM", f"{VM}/events?after=1", None)],
    "stream_vcpu": [("STREAM", f"{VM}/vcpu/0/events", None)],
    "take_snapshot": [("POST", f"{VM}/snapshot", None)],
    "restore_snapshot": [("POST", "/vms/restore?id=again", bytes(BODY)), ("POST", "/vms/restore?id=again", "image")],
    "delete_vm": [("DELETE", "/vms/again", None), ("DELETE", VM, None)],
    "reset": [("POST", "/reset", None)],
}  # fmt: skip


class Watched(Client):
    """A server on a loop of its own, with a VM that is as large as it gets."""

    LIMITS = Limits(explorations=2)
    PATIENCE_S = 300 if ALL else 20  # the image of 2 GiB takes its time

    def __init__(self):
        super().__init__(self.LIMITS)
        self.run(self.prepare())

    async def prepare(self):
        machine = await self.server.registry.create("big", vcpus=VCPUS, programs=[[["read", 0], ["hlt"]]] * VCPUS)
        await machine.allocate_memory(64 << 20, "ram")
        for slot in (0, 1):
            await machine.set_user_memory_region(Region(slot, 1, slot << 34, 1 << 33, RAM))
        for first in range(2, SLOTS - OPERATIONS, 1_000):
            slots = range(first, min(first + 1_000, SLOTS - OPERATIONS))
            await machine.memory_transaction(
                [Region(slot, 0, FAR * 2 + slot * PAGE, PAGE, RAM) for slot in slots], "list"
            )
        for slot in (0, 1):
            await self.write(slot, DIRTY)

    async def write(self, slot, pages):
        """Every other page of a slot is dirty: as much as it gets."""
        self.server.registry.get("big").vm.memslots.dirty[slot].update(range(0, 2 * pages, 2))

    def ask(self, method, path, body):
        if method == "STREAM":
            return self.opening(path)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        raw = path.startswith("/vms/restore") or "host-memory/" in path
        return self.call(method, path, data=content, headers={} if raw else JSON)

    def opening(self, path):
        """The answer of a stream whose client leaves after the first event."""
        with self.call("GET", path, stream=True) as answer:
            assert any(line.startswith(b"data:") for line in answer.iter_lines(1 << 16))
            return answer


@pytest.fixture(scope="module")
def watched():
    made = Watched()
    yield made
    made.close()


def unknown(schema):
    """What is asked of an operation that has no line above: a body with as many values as any may have."""
    found = {}
    for path, operations in schema["paths"].items():
        if "x-alias-of" in operations:
            continue
        for method, operation in operations.items():
            name = operation["operationId"]
            if path.startswith("/vms/{vm}") and name not in LARGEST:
                there = re.sub(r"{\w+}", "0", path.replace("{vm}", "big"))
                found[name] = [(method.upper(), there, values(b"{}", 60_000) if method != "get" else None)]
    return found


def poll(client, over):
    """Ask for /healthz until it is over; the longest answer in seconds."""
    longest = 0.0
    while not over.is_set():
        began = time.monotonic()
        client.call("GET", "/healthz")
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.002)
    return longest


def test_no_operation_at_its_largest_holds_the_loop(watched):
    schema = watched.call("GET", "/openapi.json").json()
    for path in ("/vms", "/kvm", "/metrics"):  # what is loaded once is loaded
        watched.call("GET", path)
    rows, image = [], b""
    gc.disable()  # its turns are as long as this process's heap is large; the server's own has few of them
    with stopwatch(watched.thread.ident) as watch, ThreadPoolExecutor(1) as executor:
        over = threading.Event()
        health = executor.submit(poll, watched, over)
        try:
            for operation, requests in (unknown(schema) | LARGEST).items():
                for number, (method, path, body) in enumerate(requests):
                    if operation == "take_snapshot":
                        watched.run(watched.write(0, DIRTY // 4))  # about as many as an image may have
                    scale = slowness()
                    watch.lap()
                    began = time.monotonic()
                    answer = watched.ask(method, path, image if body == "image" else body)
                    took = time.monotonic() - began
                    watched.run(asyncio.sleep(0))  # whatever answered has come to its end
                    held, what = watch.lap()
                    if operation == "take_snapshot":
                        image = answer.content
                    rows.append((held / scale, operation, number, answer.status_code, took, what))
                    assert answer.status_code < 500 or answer.status_code in (501, 503, 504, 507), answer.text[:500]
        finally:
            over.set()
        slowest = health.result()
    gc.enable()
    rows.sort(reverse=True)
    table = [
        f"{held * 1e3:7.1f} ms  {name}[{number}] {status}  ({took:.2f} s)"
        for held, name, number, status, took, _ in rows
    ]
    print("\n".join(table[: None if ALL else 5]), f"\n/healthz at most {slowest * 1e3:.0f} ms")  # noqa: T201
    assert rows[0][0] < LONGEST_S, "\n".join([*table[:5], rows[0][-1]])
