"""The translator's own CPU structure, as far as an emulator reads and writes it.

Reading a register through Unicorn's calls costs microseconds, and some state (hidden segment parts, interrupt
shadow, error codes) has no call at all. So the structure is described here; ``live_state`` checks that
against the public register calls before it is used.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

from kickstand.guests.x86.state.segments import SegmentCache


class X87Register(ctypes.Structure):
    """80 bits of a floating-point register, or 64 of an MMX one."""

    _fields_: ClassVar = [("mantissa", ctypes.c_uint64), ("exponent", ctypes.c_uint16)]
    mantissa: int
    exponent: int


class FloatStatus(ctypes.Structure):
    """How the translator computes: what it derives of a control word."""

    _fields_: ClassVar = [
        ("tininess", ctypes.c_uint8),
        ("rounding", ctypes.c_uint8),
        ("exceptions", ctypes.c_uint8),
        ("precision", ctypes.c_uint8),
        ("flush_to_zero", ctypes.c_uint8),
        ("flush_inputs_to_zero", ctypes.c_uint8),
        ("_", ctypes.c_uint8 * 2),
    ]
    rounding: int
    precision: int
    flush_to_zero: int
    flush_inputs_to_zero: int


class CpuLayout(ctypes.Structure):
    """The first part of the translator's CPU structure for a 64-bit x86 CPU."""

    _pack_ = 1
    _fields_: ClassVar = [
        ("gpr", ctypes.c_uint64 * 16),
        ("rip", ctypes.c_uint64),
        ("eflags", ctypes.c_uint64),
        ("cc_dst", ctypes.c_uint64),
        ("cc_src", ctypes.c_uint64),
        ("cc_src2", ctypes.c_uint64),
        ("cc_op", ctypes.c_uint32),
        ("df", ctypes.c_int32),
        ("hflags", ctypes.c_uint32),
        ("hflags2", ctypes.c_uint32),
        ("segment", SegmentCache * 6),
        ("ldt", SegmentCache),
        ("tr", SegmentCache),
        ("gdt", SegmentCache),
        ("idt", SegmentCache),
        ("cr", ctypes.c_uint64 * 5),
        ("_0", ctypes.c_uint8 * 24),
        ("cr8", ctypes.c_uint8),
        ("_1", ctypes.c_uint8 * 103),
        ("efer", ctypes.c_uint64),
        ("_2", ctypes.c_uint8 * 4),
        ("fpstt", ctypes.c_uint32),
        ("fpus", ctypes.c_uint16),
        ("fpuc", ctypes.c_uint16),
        ("fptags", ctypes.c_uint8 * 8),  # 1: empty
        ("_3", ctypes.c_uint8 * 4),
        ("fpregs", X87Register * 8),
        ("fpop", ctypes.c_uint16),
        ("fpcs", ctypes.c_uint16),
        ("fpds", ctypes.c_uint16),
        ("_4", ctypes.c_uint8 * 2),
        ("fpip", ctypes.c_uint64),
        ("fpdp", ctypes.c_uint64),
        ("fp_status", FloatStatus),
        ("_5", ctypes.c_uint8 * 24),
        ("sse_status", FloatStatus),
        ("mxcsr", ctypes.c_uint32),
        ("_6", ctypes.c_uint8 * 4),
        ("xmm", (ctypes.c_uint64 * 8) * 16),  # the lower two count
        ("_7", ctypes.c_uint8 * 2952),
        ("sysenter_cs", ctypes.c_uint32),
        ("_8", ctypes.c_uint8 * 4),
        ("sysenter_esp", ctypes.c_uint64),
        ("sysenter_eip", ctypes.c_uint64),
        ("star", ctypes.c_uint64),
        ("_9", ctypes.c_uint8 * 8),
        ("lstar", ctypes.c_uint64),
        ("cstar", ctypes.c_uint64),
        ("syscall_mask", ctypes.c_uint64),
        ("kernel_gs_base", ctypes.c_uint64),
        ("_10", ctypes.c_uint8 * 24),
        ("tsc_aux", ctypes.c_uint64),
        ("_11", ctypes.c_uint8 * 16),
        ("misc_enable", ctypes.c_uint64),
        ("_12", ctypes.c_uint8 * 352),
        ("pat", ctypes.c_uint64),
        ("_13", ctypes.c_uint8 * 96),
        ("error_code", ctypes.c_int32),
        ("is_software_int", ctypes.c_int32),
        ("next_rip", ctypes.c_uint64),
        ("dr", ctypes.c_uint64 * 8),
        ("breakpoints", ctypes.c_uint64 * 4),  # pointers into one engine: never moved to another
        ("old_exception", ctypes.c_int32),
        ("_14", ctypes.c_uint8 * 4),
        ("_exit_block", ctypes.c_uint64),
        ("tsc_offset", ctypes.c_uint64),  # what RDTSC adds to the host's counter
        ("_15", ctypes.c_uint8 * 24),
        ("_nested_root", ctypes.c_uint64),
        ("_nested_mode", ctypes.c_uint32),
        ("_16", ctypes.c_uint8 * 4),
        ("miss_return", ctypes.c_uint64),  # where translated code goes on after its last miss; 0: it was a fetch
    ]

    gpr: ctypes.Array[ctypes.c_uint64]
    rip: int
    eflags: int
    hflags: int
    hflags2: int
    segment: ctypes.Array[SegmentCache]
    ldt: SegmentCache
    tr: SegmentCache
    gdt: SegmentCache
    idt: SegmentCache
    cc_src: int
    cc_op: int
    cr: ctypes.Array[ctypes.c_uint64]
    cr8: int
    efer: int
    fpstt: int
    fpus: int
    fpuc: int
    fptags: ctypes.Array[ctypes.c_uint8]
    fpregs: ctypes.Array[X87Register]
    fp_status: FloatStatus
    sse_status: FloatStatus
    mxcsr: int
    xmm: ctypes.Array[ctypes.Array[ctypes.c_uint64]]
    error_code: int
    is_software_int: int
    next_rip: int
    dr: ctypes.Array[ctypes.c_uint64]
    breakpoints: ctypes.Array[ctypes.c_uint64]
    old_exception: int
    tsc_offset: int
    miss_return: int
    _exit_block: int
    _nested_root: int
    _nested_mode: int
