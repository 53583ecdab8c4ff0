"""The CPU state, laid over the translator's own CPU structure, with the derived values an emulator asks for."""

from __future__ import annotations

import ctypes

from kickstand.guests.x86.state.layout import CpuLayout
from kickstand.guests.x86.state.segments import ES, SS

GPR_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
STATE_SIZE = ctypes.sizeof(CpuLayout)
REGISTER_NAMES = frozenset((*GPR_NAMES, "rip", "rflags"))

CR0_PE, CR0_WP, CR0_PG = 1 << 0, 1 << 16, 1 << 31
CR4_MCE = 1 << 6
CR4_PSE, CR4_PAE, CR4_SMEP, CR4_SMAP = 1 << 4, 1 << 5, 1 << 20, 1 << 21
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
FLAG_TF, FLAG_IF, FLAG_DF, FLAG_IOPL, FLAG_NT = 1 << 8, 1 << 9, 1 << 10, 3 << 12, 1 << 14
FLAG_RF, FLAG_VM, FLAG_AC = 1 << 16, 1 << 17, 1 << 18

_ALWAYS_ONE = 2
_CC_OP_EFLAGS = 1
_ARITHMETIC = 0x8D5  # CF, PF, AF, ZF, SF, OF
_SHADOW = 1 << 3
_KIND = 1 << 21
_NESTED = 1 << 6
_FOUR_LEVELS_NX = 7
_CPL = 3
_CS32, _SS32, _ADDSEG, _PE, _LMA, _CS64 = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 14, 1 << 15
_CR0_COPY = 0xE  # MP, EM, TS
_CR0_SHIFT = 8
_OSFXSR, _SMAP = 1 << 22, 1 << 23
_CR4_OSFXSR = 1 << 9
_KEPT = _SHADOW | 1 << 24  # the I/O breakpoint bit belongs to DR7
_MASK32 = 0xFFFFFFFF
_FCW, _MXCSR, _PAT = 0x37F, 0x1F80, 0x0007040600070406
_DR6, _DR7 = 0xFFFF0FF0, 0x400
_PRECISIONS = {0: 32, 2: 64}  # bits of the x87's results by its precision control; else 80


class CpuState(CpuLayout):
    """The CPU state with the derived values an emulator asks for."""

    @property
    def flags(self) -> int:
        """RFLAGS. While translated code runs, the arithmetic flags are elsewhere and this is not up to date."""
        return self.eflags | _ALWAYS_ONE

    @flags.setter
    def flags(self, value: int) -> None:
        self.eflags = value | _ALWAYS_ONE

    def take_source_flags(self) -> None:
        """The arithmetic flags are in the translator's scratch register: ``Engine.run`` knows when."""
        self.eflags = self.eflags & ~_ARITHMETIC | self.cc_src & _ARITHMETIC

    def flags_are_collected(self) -> None:
        """Translated code has its arithmetic flags in the scratch register."""
        self.cc_op = _CC_OP_EFLAGS

    @property
    def backwards(self) -> bool:
        """RFLAGS.DF: strings go down."""
        return bool(self.eflags & FLAG_DF)

    @property
    def cpl(self) -> int:
        """The current privilege level."""
        return self.hflags & _CPL

    @property
    def rights(self) -> tuple[int, int]:
        """What accesses to memory are judged by, but for control registers."""
        return self.cpl, self.eflags & FLAG_AC

    @property
    def protected(self) -> bool:
        """CR0.PE, and not virtual-8086 mode."""
        return bool(self.cr[0] & CR0_PE) and not self.eflags & FLAG_VM

    @property
    def long_mode(self) -> bool:
        """EFER.LMA: 64-bit or compatibility mode."""
        return bool(self.efer & EFER_LMA)

    @property
    def bits(self) -> int:
        """The size of code: 16, 32 or 64."""
        if self.hflags & _CS64:
            return 64
        return 32 if self.hflags & _CS32 else 16

    @property
    def shadow(self) -> bool:
        """True directly after STI or a load of SS."""
        return bool(self.hflags & _SHADOW)

    def set_shadow(self, *, shadow: bool) -> None:
        """Be directly after STI or a load of SS, or not."""
        self.hflags = self.hflags & ~_SHADOW | (_SHADOW if shadow else 0)

    @property
    def kind(self) -> int:
        """Which kind of translated code is executed: 0 or 1.

        The translator keeps code apart by ``hflags``. This bit of them is for SVM guests, which are nothing without
        an intercept.
        """
        return int(bool(self.hflags & _KIND))

    @kind.setter
    def kind(self, value: int) -> None:
        self.hflags = self.hflags & ~_KIND | (_KIND if value else 0)

    @property
    def nested_paging(self) -> bool:
        """Guest-physical addresses go through nested tables."""
        return bool(self.hflags2 & _NESTED)

    @nested_paging.setter
    def nested_paging(self, value: bool) -> None:
        self.hflags2 = self.hflags2 & ~_NESTED | (_NESTED if value else 0)

    def nest(self, root: int, exit_block: int) -> None:
        """Send them through the tables at ``root``; what these refuse is told in ``exit_block``."""
        self._nested_root, self._nested_mode, self._exit_block = root, _FOUR_LEVELS_NX, exit_block
        self.nested_paging = True

    def clear_shadow(self) -> None:
        """An instruction was executed outside the translator."""
        self.hflags &= ~_SHADOW

    def set_resume(self, *, repeating: bool) -> None:
        """RFLAGS.RF after an emulated instruction: set while a repeated one is not left behind."""
        self.eflags = self.eflags | FLAG_RF if repeating else self.eflags & ~FLAG_RF

    def linear(self, segment: int, offset: int) -> int:
        """``get_segment_base`` plus offset; in 64-bit code only FS and GS have a base."""
        if self.hflags & _CS64:
            base = self.segment[segment].base if segment >= 4 else 0  # noqa: PLR2004 - FS is the fourth
            return (base + offset) & ((1 << 64) - 1)
        return (self.segment[segment].base + offset) & _MASK32

    @property
    def linear_rip(self) -> int:
        """``kvm_get_linear_rip``."""
        return self.linear(1, self.rip)

    def beyond_code(self, offset: int) -> bool:
        """True if an instruction pointer is beyond the limit of CS; 64-bit code has none."""
        return not self.hflags & _CS64 and offset > self.segment[1].limit

    def update_hidden_flags(self) -> None:
        """Derive what the translator keeps of segments and control registers (``hflags``)."""
        cr0, cr4 = self.cr[0], self.cr[4]
        value = self.hflags & _KEPT | (cr0 & _CR0_COPY) << _CR0_SHIFT
        value |= _OSFXSR if cr4 & _CR4_OSFXSR else 0
        value |= _SMAP if cr4 & CR4_SMAP else 0
        value |= _LMA if self.long_mode else 0
        if cr0 & CR0_PE:
            value |= _PE | (_CPL if self.eflags & FLAG_VM else self.segment[SS].dpl)
        self.hflags = value | self._code_flags()

    def _code_flags(self) -> int:
        code, stack = self.segment[1], self.segment[SS]
        if self.long_mode and code.long:
            return _CS32 | _SS32 | _CS64
        value = (_CS32 if code.big else 0) | (_SS32 if stack.big else 0)
        flat = not any(self.segment[index].base for index in (ES, SS, 3))
        return value if flat and self.protected and code.big else value | _ADDSEG

    def update_float_modes(self) -> None:
        """Derive what the translator keeps of the x87's control word and of MXCSR.

        FZ is in the x87's status: that is where this translator puts it.
        """
        control, mxcsr = self.fpuc, self.mxcsr
        self.fp_status.rounding = control >> 10 & 3
        self.fp_status.precision = _PRECISIONS.get(control >> 8 & 3, 80)
        self.fp_status.flush_to_zero = mxcsr >> 15 & 1
        self.sse_status.rounding = mxcsr >> 13 & 3
        self.sse_status.flush_inputs_to_zero = mxcsr >> 6 & 1

    def reset(self) -> None:
        """``kvm_vcpu_reset``: the state after power-on."""
        self.gpr[RDX] = 0x600
        self.rip = 0xFFF0
        self.flags = 2
        self.hflags2 = 1
        self.old_exception = -1
        for cache in self.segment:
            cache.load(0, 0, 0xFFFF, 0x9300)
        self.segment[1].load(0xF000, 0xFFFF0000, 0xFFFF, 0x9B00)
        self.ldt.load(0, 0, 0xFFFF, 0x8200)
        self.tr.load(0, 0, 0xFFFF, 0x8B00)
        self.gdt.limit = self.idt.limit = 0xFFFF
        self.cr[0] = 0x60000010
        self.fpuc, self.mxcsr, self.pat, self.misc_enable = _FCW, _MXCSR, _PAT, 1
        self.fptags[:] = [1] * 8
        self.dr[6], self.dr[7] = _DR6, _DR7
        self.update_hidden_flags()
        self.update_float_modes()
