"""Ioctl scripts: the one language of replay, ``/vm/script``, the trace export and bug reports.

``operations`` and ``parse`` are the language, ``reader`` the files, ``player`` plays on a machine in this process,
``http_player`` on a server's, ``compare`` judges answers, ``replay`` does all of it for many traces, ``export``
writes what happened on a machine as a script. ``generate``, ``shrink`` and ``differential`` compare the emulator
with the real /dev/kvm.
"""
