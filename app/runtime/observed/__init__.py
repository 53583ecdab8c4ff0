"""What observers read of a machine without an operation: state, locks, answers, what would wake a vCPU."""
