"""Descriptors that the program holds: those of KVM, its eventfds, files of statistics."""
