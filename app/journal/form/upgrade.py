"""What was kept by older versions, brought to the form of this one: a step for each format.

A change of the form that a default cannot bridge is a new format: a step here, and a file of the old one in
``tests/journal/disk/kept``, which is restored by a test for ever.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from kickstand.core.errors import KvmError
from kickstand.journal.form.machine import FORMAT

Parts = dict[str, Any]


def upgraded(parts: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The parts in the form that is read now.

    ``KeyError``, ``TypeError``, ``ValueError``: they are no parts; ``KvmError`` EOPNOTSUPP: this version is too old,
    or too new, for what is in them, and they are not damaged.
    """
    found = _format_of(parts)
    if found == FORMAT:
        return parts
    if found > FORMAT:
        raise _not_here(f"it was kept by a newer version (format {found}, and {FORMAT} is the last known here)")
    read: Parts = {name: from_json(value) for name, value in parts.items()}
    for step in STEPS[found - 1 :]:
        step(read)
    read["vm"]["format"] = FORMAT
    return {name: to_json(value) for name, value in read.items()}


def _format_of(parts: Mapping[str, bytes]) -> int:
    found = from_json(parts["vm"])["format"]
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"vm.format: {found!r} is no format")
    return found


def _not_here(why: str) -> KvmError:
    return KvmError(errno.EOPNOTSUPP, "restore", why)


def _controllers_of_their_own(parts: Parts) -> None:
    """1 to 2: vectors wait in the local APIC, which is a part of the vCPU, instead of in a list."""
    for name, part in parts.items():
        if name.startswith("cpu/") and part["arch"].pop("irr", None):
            raise _not_here(f"{name} has interrupts pending in the interrupt controller of an older version")


def _slots_in_groups(parts: Parts) -> None:
    """2 to 3: a part for each group of slots, and for the dirty pages of each slot, instead of one for all."""
    slots, dirty = parts["slots"]["slots"], parts["slots"]["dirty"]
    parts["slots"] = [len(slots), sum(sum(runs[1::2]) for runs in dirty.values())]
    parts["slots/0"] = slots
    parts |= {f"dirty/{int(slot)}/0": runs for slot, runs in dirty.items()}


STEPS: tuple[Callable[[Parts], None], ...] = (_controllers_of_their_own, _slots_in_groups)
