"""Programs that use /dev/kvm, run on the emulator: ``kickstand exec``.

A program starts under a seccomp filter that sends its ioctls of /dev/kvm here (``host``). Its descriptors are memfds,
and each vCPU's run page is mapped in both (``device``); its guest memory is its own pages, shared in place
(``memory``). ``supervisor`` is where all of it meets the loop. It is no sandbox: what is not about /dev/kvm goes to the
kernel unchanged.
"""
