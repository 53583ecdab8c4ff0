"""What x86 adds to a vCPU: its part in the protocol, CPUID, MSRs, special registers."""
