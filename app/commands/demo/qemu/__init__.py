"""``kickstand demo --client qemu``: the race of the mail in the program that it was written about, and both cures.

QEMU 7.2 is the last release that does nothing against it. Its second CPU executes code in low RAM while the first one
has it delete and create the slot of low RAM: unprotected, "KVM internal error. Suberror: 1", on a real device too.
"""
