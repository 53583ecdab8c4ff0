"""Kickstand: a KVM you can curl."""

__version__ = "0.2.0"
