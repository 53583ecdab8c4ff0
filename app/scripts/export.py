"""What happened on a machine, as a script with results that replays to the same answers.

The history has calls with a beginning and an end; a script is a sequence. A KVM_RUN that nothing else overlaps is
``run``; one that others overlap is ``start_run`` where it began and ``finish_run`` where it ended. Ioctls of a
vCPU stand where they ended, since they wait for KVM_RUN, and ioctls of the VM where they began, since a kick is
what makes KVM_RUN end. Clients that were at odds at the same time (a RESUME in the midst of another's memory
transaction) got answers that no sequence has. What a script cannot say (a call that was refused for its form)
changed nothing and is left out.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kickstand.core.arch.irq.routing import MsiRoute, Route
from kickstand.core.errors import KvmError, errno_name
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause, RunResult
from kickstand.core.uapi import PAGE_SHIFT, Cap, MpState
from kickstand.guests.host_memory import Arena
from kickstand.runtime.calls.history import Call
from kickstand.runtime.events import to_json
from kickstand.runtime.machine import Machine
from kickstand.runtime.observed import views
from kickstand.scripts import by_structure
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import parse_operation
from kickstand.scripts.language.presets import PRESETS
from kickstand.scripts.language.script import Checker, ScriptLimits
from kickstand.scripts.play.forms import coalesced_result, run_result

KICK_AFTER_MS = 10
OF_VCPU = frozenset((
    "get_regs", "set_regs", "get_sregs", "set_sregs", "get_mp_state", "set_mp_state", "interrupt", "nmi",
    "set_cpuid_supported", "set_cpuid2", "set_msrs", "set_program", "get_lapic", "set_lapic", "stop_thread",
))  # fmt: skip
SENT = (Cause.SIGNAL, Cause.POLL_TIMEOUT, Cause.CLIENT_DISCONNECT)
UNBOUNDED = ScriptLimits(operations=1 << 62, memory=1 << 62, arenas=1 << 62, read=1 << 62)


Shape = tuple[str, dict[str, Any], dict[str, Any]]  # op, args, and the fields of a result that is no failure
# Where an operation's arguments or result fields are not those of the method that performs it.
OPERATIONS = {"set_regs": "change_regs", "set_cpuid2": "set_cpuid", "drain_coalesced": "coalesced"}
ARGUMENTS: dict[str, Callable[[dict[str, Any], Any], dict[str, Any]]] = {
    "set_regs": lambda args, _: {"vcpu": args["vcpu"], "regs": dict(args["registers"])},
    "set_cpuid2": lambda args, _: {"vcpu": args["vcpu"], "entries": [asdict(entry) for entry in args["entries"]]},
    "set_msrs": lambda args, _: {
        "vcpu": args["vcpu"],
        "msrs": [{"index": index, "data": data} for index, data in args["msrs"]],
    },
    "set_pit": lambda args, _: {"hex": args["state"].hex()},
    "set_irqchip": lambda args, _: {"chip_id": args["chip_id"], "hex": args["state"].hex()},
    "set_lapic": lambda args, _: {"vcpu": args["vcpu"], "hex": args["page"].hex()},
    "set_gsi_routing": lambda args, _: {"entries": [_route(*entry) for entry in args["entries"]]},
    "signal_msi": lambda args, _: {"address": args["address"], "data": args["data"]},
    "set_sregs": lambda args, _: {"vcpu": args["vcpu"], "preset": None, "changes": dict(args["changes"])},
    "get_sregs": lambda args, sregs: {**args, "only": list(sregs or ())},
    "set_mp_state": lambda args, _: {**args, "mp_state": int(args["mp_state"])},
    "clear_dirty_log": lambda args, _: {**args, "bits": list(args["bits"])} if args.get("bits") is not None else args,
}


def _route(gsi: int, route: Route, flags: int) -> dict[str, int]:
    if isinstance(route, MsiRoute):
        return {"gsi": gsi, "address": route.address, "data": route.data, "flags": flags}
    return {"gsi": gsi, "irqchip": int(route.chip), "pin": route.pin, "flags": flags}


RESULTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "kick": lambda done: {"changed": done["changed"], "holds": done["holds"]},
    "resume": lambda done: {"changed": done["changed"], "holds": done["holds"]},
    "get_lapic": lambda page: {"hex": page.hex()},
    "get_pit": lambda state: {"hex": state.hex()},
    "get_irqchip": lambda state: {"hex": state[1].hex()},
    "irq_line_status": lambda done: {"status": done["status"]},
    "get_regs": lambda regs: {"regs": regs},
    "get_sregs": lambda sregs: {"sregs": sregs},
    "get_mp_state": lambda mp_state: {"mp_state": MpState(mp_state).name},
    "set_msrs": lambda taken: {"taken": taken},
    "drain_coalesced": coalesced_result,
    "signal_msi": lambda accepted: {"delivered": accepted > 0},
}


def exporter(machine: Machine) -> Callable[[], bytes]:
    """What writes the history up to now as a file: one line, which is one trace. It may run in a thread."""
    head, operations = _begin(machine, None)

    def write() -> bytes:
        # One by one: the encoder lets nobody else run before it has come to its end.
        ops = ",".join(map(to_json, operations))
        return f'{to_json(head).removesuffix("}")},"ops":[{ops}]}}\n'.encode()

    return write


def script_of(machine: Machine, name: str | None = None) -> dict[str, Any]:
    """The machine's history as one trace. ``dropped`` is not 0 if its beginning is lost; it cannot be replayed then."""
    head, operations = _begin(machine, name)
    return head | {"ops": list(operations)}


def _begin(machine: Machine, name: str | None) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    head = {
        "id": name or f"recorded/{machine.id}",
        "family": "recorded",
        "seed": None,
        "nested-quirk": False,
        "dropped": machine.history.dropped,
        "vm": _header(machine),
    }
    return head, _Recorder(machine).operations()


def _header(machine: Machine) -> dict[str, Any]:
    made = any(_makes_irqchip(call) and call.error is None for call in machine.history.calls)
    return {
        "engine": machine.engine,
        "variant": machine.variant,
        "mode": machine.mode,
        "seed": machine.seed,
        "irqchip": machine.vm.irqchip and not made,
        "switches": asdict(machine.vm.switches),
    }


def _makes_irqchip(call: Call) -> bool:
    split = call.name == "enable_cap" and call.arguments["capability"] == Cap.SPLIT_IRQCHIP
    return split or call.name == "create_irqchip"


@dataclass(frozen=True, slots=True)
class _Moment:
    """Where in the sequence a call, or one end of a KVM_RUN, stands."""

    at: int
    call: Call
    part: str = "whole"  # or "start", "finish"


class _Recorder:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.labels: dict[int, str] = {}  # of arenas by host address
        self.pages: dict[int, int] = {}  # of slots
        self.checker = Checker(PRESETS, UNBOUNDED, {}, set(), set())
        self.in_access: set[int] = set()  # vCPUs whose registers are not defined now
        self.moments = self._moments()  # now: what happens from here on is not told
        self.shapes: dict[str, Callable[[Call], Shape]] = {
            "allocate": self._allocate, "write": self._write, "fill": self._fill, "read": self._read,
            "set_user_memory_region": self._set_region, "memory_transaction": self._transaction,
            "create_vcpu": self._create_vcpu, "get_dirty_log": self._dirty_log,
        }  # fmt: skip

    def operations(self) -> Iterator[dict[str, Any]]:
        for moment in self.moments:
            try:
                for operation in self._shape(moment):
                    parsed = parse_operation(operation)
                    self.checker.check(parsed.args)
                    yield operation
            except ScriptError:
                continue

    # -- order -----------------------------------------------------------------------------------------------

    def _moments(self) -> list[_Moment]:
        moments: list[_Moment] = []
        free_at: dict[int, int] = {}  # when the vCPU's last KVM_RUN had left
        for call in self.machine.history.calls:
            if call.name != "start_run":
                if call.ended is not None:
                    of_vcpu = call.name in OF_VCPU or by_structure.of_vcpu(call.name)
                    moments.append(_Moment(call.ended if of_vcpu else call.begun, call))
                continue
            if call.vcpu is None or call.given_up:
                continue  # it was never inside
            vcpu = call.vcpu
            moments.append(_Moment(max(call.begun, free_at.get(vcpu, 0)), call, "start"))
            if call.ended is not None:
                free_at[vcpu] = call.ended
                moments.append(_Moment(call.ended, call, "finish"))
        moments.sort(key=lambda moment: moment.at)
        return self._joined(moments)

    def _joined(self, moments: list[_Moment]) -> list[_Moment]:
        joined: list[_Moment] = []
        for moment in moments:
            if moment.part == "finish" and joined and joined[-1].call is moment.call:
                joined[-1] = _Moment(moment.at, moment.call)
            else:
                joined.append(moment)
        return joined

    # -- shapes ----------------------------------------------------------------------------------------------

    def _shape(self, moment: _Moment) -> Iterator[dict[str, Any]]:
        call = moment.call
        if call.name == "start_run":
            yield from self._run(call, moment.part)
            return
        if call.error is not None and (call.error.ioctl == "vcpu" and call.error.errno == errno.ENOENT):
            return
        if call.name in ("get_regs", "get_sregs") and call.arguments["vcpu_id"] in self.in_access:
            return
        plain = self._structure if by_structure.told(call.name) else self._plain
        op, args, result = self.shapes.get(call.name, plain)(call)
        yield {"op": op, "args": args, "result": _answer(call.error, result)}

    def _run(self, call: Call, part: str) -> Iterator[dict[str, Any]]:
        vcpu = call.vcpu
        assert vcpu is not None
        reply: bytes | None = call.arguments.get("reply")
        args: dict[str, Any] = {"vcpu": vcpu}
        if reply is not None:
            args["reply"] = reply.hex()
        if call.arguments.get("immediate_exit") is not None:
            args["immediate_exit"] = call.arguments["immediate_exit"]
        if part == "start":
            yield {"op": "start_run", "args": args, "result": _answer(None, {})}
            return
        result = call.result
        answer = _answer(call.error, {}) if result is None else _run_answer(result)
        signalled = isinstance(result, RunResult) and result.cause in SENT and call.sent is not None
        self._note_access(vcpu, result)
        if part == "finish":
            if signalled:
                yield {"op": "signal", "args": {"vcpu": vcpu}, "result": _answer(None, {})}
            yield {"op": "finish_run", "args": {"vcpu": vcpu}, "result": answer}
            return
        if signalled:
            args["kick_after_ms"] = KICK_AFTER_MS
        yield {"op": "run", "args": args, "result": answer}

    def _note_access(self, vcpu: int, result: RunResult | None) -> None:
        pending = result is not None and result.ret == 0 and getattr(result.exit, "reply_length", None) is not None
        (self.in_access.add if pending else self.in_access.discard)(vcpu)

    def _plain(self, call: Call) -> Shape:
        """An operation with the method's own name and arguments, or nearly so."""
        args = {
            "vcpu" if name == "vcpu_id" else name: value for name, value in call.arguments.items() if value is not None
        }
        shape_args, shape_result = ARGUMENTS.get(call.name), RESULTS.get(call.name)
        if shape_args is not None:
            args = shape_args(args, call.result)
        result = shape_result(call.result) if shape_result is not None and call.error is None else {}
        return OPERATIONS.get(call.name, call.name), args, result

    def _structure(self, call: Call) -> Shape:
        args = by_structure.arguments(call.name, call.arguments)
        return "ioctl", args, by_structure.result(call.name, args, call.result)

    def _create_vcpu(self, call: Call) -> Shape:
        args = {"id": call.arguments["vcpu_id"]}
        if call.arguments.get("program") is not None:
            args["program"] = call.arguments["program"]
        return "create_vcpu", args, {}

    def _dirty_log(self, call: Call) -> Shape:
        slot = call.arguments["slot"]
        return "get_dirty_log", {"slot": slot, "buffer_pages": self.pages.get(slot, 64)}, {"dirty_pages": call.result}

    def _set_region(self, call: Call) -> Shape:
        region: Region = call.arguments["region"]
        if call.error is None:
            self.pages[region.slot] = region.memory_size >> PAGE_SHIFT
        return "set_memory_region", self._region(region), {}

    def _transaction(self, call: Call) -> Shape:
        regions = call.arguments["regions"]
        args: dict[str, Any] = {"operations": [self._region(region) for region in regions]}
        if call.arguments.get("protect") is not None:
            args["protect"] = call.arguments["protect"]
        return "memory_transaction", args, {} if call.result is None else {"results": call.result["results"]}

    def _region(self, region: Region) -> dict[str, Any]:
        return {
            "slot": region.slot,
            "flags": int(region.flags),
            "gpa": region.guest_phys_addr,
            "size": region.memory_size,
            "host": self._host(region.userspace_addr),
        }

    # -- host memory -----------------------------------------------------------------------------------------

    def _host(self, hva: int) -> dict[str, Any]:
        arena = self.machine.memory.find(hva)
        if arena is None or arena.base not in self.labels:
            return {"abs": hva}
        return {"arena": self.labels[arena.base], "offset": hva - arena.base}

    def _place(self, call: Call) -> dict[str, Any]:
        place = self._host(call.arguments["hva"])
        if "arena" not in place:
            raise ScriptError("no arena")
        return place

    def _allocate(self, call: Call) -> Shape:
        if not isinstance(call.result, Arena):
            raise ScriptError("nothing was allocated")
        label = call.result.name or f"memory{len(self.labels)}"
        while label in self.labels.values():
            label += "_"
        self.labels[call.result.base] = label
        return "arena", {"name": label, "size": call.result.size}, {}

    def _write(self, call: Call) -> Shape:
        return "write_host", {**self._place(call), "hex": call.arguments["data"].hex()}, {}

    def _fill(self, call: Call) -> Shape:
        return (
            "fill_host",
            {**self._place(call), "length": call.arguments["length"], "byte": call.arguments["byte"]},
            {},
        )

    def _read(self, call: Call) -> Shape:
        return (
            "read_host",
            {**self._place(call), "length": call.arguments["length"]},
            {"hex": (call.result or b"").hex()},
        )


def _answer(error: KvmError | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    if error is not None:
        return {"ret": -1, "errno": errno_name(error.errno)}
    return {"ret": 0, "errno": None, **fields}


def _run_answer(result: RunResult) -> dict[str, Any]:
    return run_result(views.run_result(result, None, None, 0, 0))
