"""One x86 virtual CPU on the Unicorn engine, with the exits of KVM.

``cpu.X86Cpu`` is the whole interface; ``memory`` says what it asks of guest memory. Everything else here is one
job each: ``registers`` the CPU state, ``paging`` the page-table walk, ``engine`` the only file that calls Unicorn,
``codepages`` where translated code must stop, ``stepper`` one instruction with every access in our hands,
``mmio`` and ``pio`` the two kinds of device access, ``delivery`` and ``longgate`` interrupts and exceptions.
"""
