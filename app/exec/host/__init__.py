"""What the host kernel gives: seccomp notification, ptrace, maps, and the start of a program."""
