"""The emulated kernel: pure coroutines over atomic operations.

Standard library only; no clock, no event loop, no randomness.
"""
