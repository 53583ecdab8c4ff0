"""Interrupts and exceptions: what waits, what two in a row become, and the way into the handler."""
