"""Ioctl scripts: the one language of replay, ``/vm/script``, the trace export and bug reports.

``language`` has operations, values and files; ``play`` performs them, on a machine in this process or on a server's,
and compares answers; ``replay`` does all of it for many traces, ``record`` keeps the answers, ``export`` writes what
happened on a machine as a script. The fuzzer that compares the emulator with the real /dev/kvm has a room of its own:
``differential``.
"""
