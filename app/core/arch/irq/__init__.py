"""The interrupt controllers that KVM has in the kernel: registers and rules as data and plain functions.

``message`` is what travels between them; ``lapic`` receives, ``ioapic``, ``i8259`` and ``routing`` send, ``i8254``
ticks, ``chips`` holds those of a whole VM. Nothing here waits, wakes or knows a vCPU: each function answers with what
shall happen, and ``core.wiring`` makes it happen. Numbers and rules are those of the kernel's files of these names
and of ``irq_comm.c`` (v6.1).
"""
