"""The CPU's state: registers, segments, MSRs and CPUID, and the faults that it can raise."""
