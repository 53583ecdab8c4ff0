"""Segment registers with their hidden parts, and the form KVM_GET_SREGS gives them."""

from __future__ import annotations

import ctypes
import struct
from operator import itemgetter
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

ES, CS, SS, DS, FS, GS = range(6)
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

_G, _DB, _L, _AVL, _P, _S = 1 << 23, 1 << 22, 1 << 21, 1 << 20, 1 << 15, 1 << 12
LONG_CODE = _L
_FIELDS = (("type", 8, 15), ("s", 12, 1), ("dpl", 13, 3), ("present", 15, 1))
_MORE_FIELDS = (("avl", 20, 1), ("l", 21, 1), ("db", 22, 1), ("g", 23, 1))
_ALL_FIELDS = (*_FIELDS, *_MORE_FIELDS)
_WHOLE = itemgetter("selector", "base", "limit", "unusable", *(name for name, *_ in _ALL_FIELDS))
_OTHERS = ~sum(mask << shift for _, shift, mask in _ALL_FIELDS)
_PACKED = struct.Struct("=I4xQII")


class SegmentCache(ctypes.Structure):
    """Selector, base, limit in bytes, and the attributes as in the upper half of a descriptor."""

    _fields_: ClassVar = [
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]
    selector: int
    base: int
    limit: int
    flags: int

    def load(self, selector: int, base: int, limit: int, flags: int) -> None:
        """Set all four parts."""
        _PACKED.pack_into(self, 0, selector, base, limit, flags)

    def load_descriptor(self, selector: int, low: int, high: int) -> None:
        """Set from the two halves of an eight-byte descriptor."""
        limit = low & 0xFFFF | high & 0xF0000
        if high & _G:
            limit = limit << 12 | 0xFFF
        self.load(selector, low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000, limit, high)

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.flags >> 13 & 3

    @property
    def big(self) -> bool:
        """The D/B bit."""
        return bool(self.flags & _DB)

    @property
    def long(self) -> bool:
        """The L bit."""
        return bool(self.flags & _L)

    def to_kvm(self) -> dict[str, int]:
        """``struct kvm_segment`` as a dict."""
        values = {"base": self.base, "limit": self.limit, "selector": self.selector & 0xFFFF}
        for name, shift, mask in _ALL_FIELDS:
            values[name] = self.flags >> shift & mask
        values["unusable"] = 1 - values["present"]
        return values

    def from_kvm(self, values: Mapping[str, int]) -> None:
        """Take the fields that are named, keep the others."""
        try:
            selector, base, limit, unusable, kind, s, dpl, present, avl, l, db, g = _WHOLE(values)  # noqa: E741
            flags = (kind & 15) << 8 | (s & 1) << 12 | (dpl & 3) << 13 | (present & 1) << 15
            flags |= (avl & 1) << 20 | (l & 1) << 21 | (db & 1) << 22 | (g & 1) << 23
            flags |= self.flags & _OTHERS
            self.load(selector & 0xFFFF, base, limit & 0xFFFFFFFF, flags & ~_P if unusable else flags)
        except (KeyError, TypeError):
            self._take(values)

    def _take(self, values: Mapping[str, int]) -> None:
        flags = self.flags
        for name, shift, mask in _ALL_FIELDS:
            value = values.get(name)
            if value is not None:
                flags = flags & ~(mask << shift) | (value & mask) << shift
        if values.get("unusable"):
            flags &= ~_P
        self.load(
            values.get("selector", self.selector) & 0xFFFF,
            values.get("base", self.base),
            values.get("limit", self.limit) & 0xFFFFFFFF,
            flags,
        )
