"""Instructions carried out one at a time: any on device memory or across a hole, those about the CPU, system calls."""
