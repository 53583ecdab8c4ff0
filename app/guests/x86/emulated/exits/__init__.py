"""Instructions that become exits: device memory, ports, MSRs, and what waits for userspace's answer."""
