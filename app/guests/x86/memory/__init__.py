"""Guest memory: physical as segments of host memory, linear through page tables."""
