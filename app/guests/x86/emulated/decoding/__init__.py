"""Which instruction it is: its shape, and whether KVM's emulator knows it."""
