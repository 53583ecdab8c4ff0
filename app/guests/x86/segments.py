"""Segment registers with their hidden parts, and the form KVM_GET_SREGS gives them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

ES, CS, SS, DS, FS, GS = range(6)
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

_G, _DB, _L, _AVL, _P, _S = 1 << 23, 1 << 22, 1 << 21, 1 << 20, 1 << 15, 1 << 12
LONG_CODE = _L
_FIELDS = (("type", 8, 15), ("s", 12, 1), ("dpl", 13, 3), ("present", 15, 1))
_MORE_FIELDS = (("avl", 20, 1), ("l", 21, 1), ("db", 22, 1), ("g", 23, 1))


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
        self.selector, self.base, self.limit, self.flags = selector, base, limit, flags

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
        for name, shift, mask in (*_FIELDS, *_MORE_FIELDS):
            values[name] = self.flags >> shift & mask
        values["unusable"] = 1 - values["present"]
        return values

    def from_kvm(self, values: Mapping[str, int]) -> None:
        """Take the fields that are named, keep the others."""
        flags = self.flags
        for name, shift, mask in (*_FIELDS, *_MORE_FIELDS):
            if name in values:
                flags = flags & ~(mask << shift) | (values[name] & mask) << shift
        if values.get("unusable"):
            flags &= ~_P
        self.load(
            values.get("selector", self.selector) & 0xFFFF,
            values.get("base", self.base),
            values.get("limit", self.limit) & 0xFFFFFFFF,
            flags,
        )
