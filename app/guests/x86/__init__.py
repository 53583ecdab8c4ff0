"""x86 virtual CPUs on the Unicorn engine, with the exits of KVM.

``guest`` is the engine as the core sees it, ``cpu`` one CPU. Guest code runs at full speed in ``translated``; what KVM
itself would carry out (devices, interrupts, instructions about the CPU) is ``emulated``, one instruction at a time.
Both work on ``state`` (registers, segments, MSRs) and on ``memory`` (physical, and linear through page tables).
"""
