"""What a VMM means by some of the special registers: those it names, and within a segment or table only its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kickstand.core.uapi import KVM_SREGS
from kickstand.core.uapi.layout import Struct

_KINDS = {name: KVM_SREGS[name].kind for name in KVM_SREGS.names}
_MEMBERS = {name: frozenset(kind.names) for name, kind in _KINDS.items() if isinstance(kind, Struct)}


def overlay(changes: Mapping[str, object], read: Callable[[], Mapping[str, object]]) -> Mapping[str, Any]:
    """The named registers as they shall be; ``read`` tells those that there are, and is called only if it must be.

    Nobody else may change them meanwhile: call it with the vCPU's mutex held.
    """
    if all(_is_whole(changes[name], members) for name, members in _MEMBERS.items() if name in changes):
        return changes
    now = read()
    return {name: _over(now.get(name), change) for name, change in changes.items()}


def _is_whole(change: object, members: frozenset[str]) -> bool:
    if type(change) is dict and len(change) == len(members):  # the usual one, at a fraction of the cost
        return change.keys() == members
    return not isinstance(change, Mapping) or change.keys() >= members


def _over(old: object, new: object) -> object:
    return {**old, **new} if isinstance(old, Mapping) and isinstance(new, Mapping) else new
