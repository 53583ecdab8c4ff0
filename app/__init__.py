"""Kickstand: a KVM you can curl."""

__version__ = "0.1.0"
