"""Windows: while one is open, no vCPU of its machine is in KVM_RUN; several slots change in it as one."""
