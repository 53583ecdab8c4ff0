"""Which locals of a suspended frame can still be read: backward data flow over the bytecode.

A variable that is dead says nothing about how a coroutine goes on; leaving it out makes local states equal
that differ only in leftovers (the result of the last KVM_RUN, the exit that was handled).
"""

from __future__ import annotations

import dis
from functools import cache
from types import CodeType
from typing import Any

STOPS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "RETURN_GENERATOR_ERROR"}
JUMPS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE"}


def _uses(instruction: dis.Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Locals that an instruction (reads, overwrites); combined instructions read or write two."""
    name = instruction.opname
    if "FAST" not in name or "JUMP" in name:
        return (), ()
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    kinds = [part for part in name.split("_") if part in ("LOAD", "STORE", "DELETE")]
    if not kinds or name.count("FAST") != len(kinds) or "MAYBE" in name:
        return (
            names,
            (),
        )  # not known: a local that lives too long costs states, one that dies too early would cost truth
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    for kind, local in zip(kinds * len(names) if len(kinds) == 1 else kinds, names, strict=False):
        if kind == "LOAD":
            reads += (local,)
        else:
            writes += (local,)
    return reads, writes


@cache
def live_locals(code: CodeType) -> dict[int, frozenset[str]]:
    """Map each instruction's offset to the locals that may be read after it."""
    instructions = list(dis.get_instructions(code))
    follow = _successors(code, instructions)
    uses = [_uses(instruction) for instruction in instructions]
    before: list[frozenset[str]] = [frozenset()] * len(instructions)
    after = list(before)
    changed = True
    while changed:
        changed = False
        for position in reversed(range(len(instructions))):
            normal, handlers = follow[position]
            reads, writes = uses[position]
            caught = _union(before, handlers)
            out = _union(before, normal) | caught
            into = (out - frozenset(writes)) | frozenset(reads) | caught
            if into != before[position] or out != after[position]:
                before[position], after[position], changed = into, out, True
    cells = frozenset(code.co_cellvars) | frozenset(code.co_freevars)
    return {instruction.offset: after[position] | cells for position, instruction in enumerate(instructions)}


def _union(sets: list[frozenset[str]], positions: list[int]) -> frozenset[str]:
    return frozenset[str]().union(*(sets[position] for position in positions))


def _successors(code: CodeType, instructions: list[dis.Instruction]) -> list[tuple[list[int], list[int]]]:
    """For each instruction: what may come next, and the handlers of an exception it raises."""
    at = {instruction.offset: position for position, instruction in enumerate(instructions)}
    entries: Any = getattr(dis.Bytecode(code), "exception_entries", ())
    follow = []
    for position, instruction in enumerate(instructions):
        normal = []
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            normal.append(at[instruction.argval])
        if instruction.opname not in STOPS | JUMPS and position + 1 < len(instructions):
            normal.append(position + 1)
        handlers = [at[entry.target] for entry in entries if entry.start <= instruction.offset < entry.end]
        follow.append((normal, handlers))
    return follow
