"""The register presets of ``set_sregs`` that need no ``meta.json``: three ways to start a guest at once.

They are the values that the recorded traces use; a folder's own ``meta.json`` goes before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CODE, DATA = 11, 3  # segment types: accessed and readable code, accessed and writable data
CODE16 = {"selector": 0, "base": 0, "limit": 0xFFFF, "db": 0, "g": 0}


def _segment(kind: int, **changes: int) -> dict[str, int]:
    flat = {
        "base": 0,
        "limit": 0xFFFF_FFFF,
        "selector": 8 if kind == CODE else 16,
        "type": kind,
        "present": 1,
        "dpl": 0,
        "db": 1,
        "s": 1,
        "l": 0,
        "g": 1,
        "avl": 0,
        "unusable": 0,
    }
    return flat | changes


def _mode(code: Mapping[str, int], data: Mapping[str, int], **control: int) -> dict[str, Any]:
    segments = {name: _segment(DATA, **data) for name in ("ds", "es", "fs", "gs", "ss")}
    return {"cs": _segment(CODE, **code), **segments, **control}


PRESETS: dict[str, dict[str, Any]] = {
    "real": _mode(CODE16, {"selector": 0, "db": 0}, cr0=0x10, cr3=0, cr4=0, efer=0),
    "prot32": _mode({}, {}, cr0=0x11, cr3=0, cr4=0, efer=0),
    "long64": _mode({"l": 1, "db": 0}, {}, cr0=0x8001_0011, cr3=0x8000, cr4=0x20, efer=0x500),
}


def special_registers(
    presets: Mapping[str, Mapping[str, Any]], preset: str | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``set_sregs`` changes: the preset, overlaid with ``changes``, field by field within a segment or table."""
    values = dict(presets[preset]) if preset is not None else {}
    for name, change in changes.items():
        below = values.get(name)
        values[name] = {**below, **change} if isinstance(below, Mapping) and isinstance(change, Mapping) else change
    return values
