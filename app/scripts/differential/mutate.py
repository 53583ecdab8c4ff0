"""Recorded scripts with something changed: an operand, the order, a bit of the code. What nobody thinks of to write.

The same seed and the same scripts give the same change. What a change makes of the guest's code is anybody's guess, and
that is what it is for.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import Operation, parse_operations, plain
from kickstand.scripts.language.script import Trace, check

PAGE = 4096
TRIES = 100
CODE = 2_048  # longer writes are no programs
PROGRAM = 200  # bytes of a program that are changed
ALL_ONES = (1 << 64) - 1
FLAGS = 0xCD5  # arithmetic flags, direction, interrupts
ADDRESSES = (0, PAGE, 2 * PAGE, 0x10000, 0x100000, 0xFEE00000, 1 << 32, (1 << 52) - PAGE)
VALUES = (0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, ALL_ONES, 0x1000, 0x2000)
MEANT = frozenset((
    "KVM_SET_VCPU_EVENTS", "KVM_TRANSLATE", "KVM_ENABLE_CAP", "KVM_SET_CLOCK", "KVM_SET_GUEST_DEBUG", "KVM_X86_SET_MCE",
))  # fmt: skip
DEBUGREGS = 56  # bytes that are not reserved
Json = dict[str, Any]


class Mutations:
    """Changes one of ``traces`` for each seed."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._scripts = [plain(trace.operations) for trace in traces]

    def script(self, seed: int) -> list[Operation]:
        """A changed script that is one. ``ScriptError``: none was found."""
        rng = random.Random(seed)
        for _ in range(TRIES):
            ops = copy.deepcopy(rng.choice(self._scripts))
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                _change(rng, ops)
            try:
                operations = parse_operations([{"op": op["op"], "args": _timeless(op["args"])} for op in ops])
                check(operations)
            except ScriptError:
                continue
            return operations
        raise ScriptError("no change of these scripts gives a script")


def _timeless(args: Json) -> Json:
    """When a kick comes is a matter of luck."""
    return {name: value for name, value in args.items() if name != "kick_after_ms"}


def _change(rng: random.Random, ops: list[Json]) -> None:
    at = rng.randrange(len(ops))
    kind = rng.choices((_operand, _again, _without, _swapped, _look), (60, 15, 10, 7, 8))[0]
    kind(rng, ops, at)


def _operand(rng: random.Random, ops: list[Json], at: int) -> None:
    change = OPERANDS.get(ops[at]["op"])
    if change is not None:
        change(rng, ops[at]["args"])


def _again(rng: random.Random, ops: list[Json], at: int) -> None:
    if ops[at]["op"] not in ("arena", "create_vcpu"):
        ops.insert(rng.randrange(at, len(ops) + 1), copy.deepcopy(ops[at]))


def _without(_rng: random.Random, ops: list[Json], at: int) -> None:
    if ops[at]["op"] != "arena" and len(ops) > 1:
        del ops[at]


def _swapped(rng: random.Random, ops: list[Json], at: int) -> None:
    other = rng.randrange(len(ops))
    if "arena" not in (ops[at]["op"], ops[other]["op"]):
        ops[at], ops[other] = ops[other], ops[at]


def _look(rng: random.Random, ops: list[Json], at: int) -> None:
    if "vcpu" in ops[at]["args"]:
        op = {"op": rng.choice(("get_regs", "get_mp_state", "run")), "args": {"vcpu": ops[at]["args"]["vcpu"]}}
        ops.insert(rng.randrange(at, len(ops) + 1), op)


def _registers(rng: random.Random, args: Json) -> None:
    name = rng.choice(sorted(args["regs"]))
    old = args["regs"][name]
    if name == "rflags":
        args["regs"][name] = 2 | rng.getrandbits(12) & FLAGS
    elif name != "rip":
        random_bits = rng.getrandbits(rng.choice((16, 32, 64)))
        args["regs"][name] = rng.choice((*VALUES, random_bits, random_bits, old ^ 1 << rng.randrange(64)))


def _code(rng: random.Random, args: Json) -> None:
    code = bytearray.fromhex(args["hex"])
    if not 0 < len(code) <= CODE:
        return
    at = rng.randrange(min(len(code), PROGRAM))
    if rng.randrange(5):
        code[at] ^= 1 << rng.randrange(8)
    else:
        code[at:at] = rng.randbytes(1)
    args["hex"] = code.hex()


def _region(rng: random.Random, args: Json) -> None:
    field = rng.choice(("slot", "flags", "gpa", "size", "host"))
    if field == "slot":
        args["slot"] = rng.randrange(4)
    elif field == "flags":
        args["flags"] = rng.randrange(5)
    elif field != "host":
        args[field] = _number(rng, args[field])
    elif args["host"].get("arena"):
        args["host"]["offset"] = max(0, (args["host"].get("offset") or 0) + rng.choice((PAGE, -PAGE, 1, 2 * PAGE)))


def _log(rng: random.Random, args: Json) -> None:
    field = rng.choice(("first_page", "num_pages"))
    args[field] = _number(rng, args[field]) & 0xFFFFFFFF


def _ioctl(rng: random.Random, args: Json) -> None:
    """One number of a structure whose every value means the same on both sides."""
    if args["name"] in MEANT and args.get("fields"):
        _member(rng, args["fields"])
    elif args["name"] == "KVM_SET_DEBUGREGS" and args.get("hex"):
        data = bytearray.fromhex(args["hex"])
        data[rng.randrange(min(len(data), DEBUGREGS))] ^= 1 << rng.randrange(8)
        args["hex"] = data.hex()


def _member(rng: random.Random, fields: Json) -> None:
    name = rng.choice(sorted(fields))
    value = fields[name]
    if isinstance(value, dict):
        _member(rng, value)
    elif isinstance(value, int) and name != "cap":
        fields[name] = rng.choice((value ^ 1 << rng.randrange(8), 0, 1, 0xFF))


def _line(rng: random.Random, args: Json) -> None:
    name = rng.choice(("irq", "level"))
    args[name] = rng.randrange(26) if name == "irq" else rng.choice((0, 1, 1, 2))


def _state(rng: random.Random, args: Json) -> None:
    args["mp_state"] = rng.choice(("RUNNABLE", "HALTED", "INIT_RECEIVED", "UNINITIALIZED", 5, 11))


def _vector(rng: random.Random, args: Json) -> None:
    args["vector"] = rng.choice((0, 2, 31, 32, 255, 256, rng.randrange(256)))


def _message(rng: random.Random, args: Json) -> None:
    args["data"] = rng.choice((args["data"] ^ 1 << rng.randrange(16), rng.getrandbits(8)))


def _route(rng: random.Random, args: Json) -> None:
    if args["entries"]:
        entry = rng.choice(args["entries"])
        entry[rng.choice(("gsi", "pin"))] = rng.choice((*range(26), 4095, 4096))


def _number(rng: random.Random, old: int) -> int:
    changed = (old + PAGE, max(0, old - PAGE), old ^ 1 << rng.randrange(40), old + 1, rng.choice(ADDRESSES))
    return rng.choice(changed) & ALL_ONES


OPERANDS: dict[str, Callable[[random.Random, Json], None]] = {
    "set_regs": _registers,
    "change_regs": _registers,
    "write_host": _code,
    "set_memory_region": _region,
    "clear_dirty_log": _log,
    "ioctl": _ioctl,
    "irq_line": _line,
    "irq_line_status": _line,
    "set_mp_state": _state,
    "interrupt": _vector,
    "signal_msi": _message,
    "set_gsi_routing": _route,
}
