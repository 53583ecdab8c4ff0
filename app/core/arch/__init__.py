"""What x86 adds: vCPUs (``cpu``), interrupt controllers (``irq``), and what a VM has of its own (``kvm_arch``)."""
