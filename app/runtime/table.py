"""Every ioctl that is performed here, by the kind of descriptor and the whole request code.

A caller that speaks bytes: ``start(find(fd, request).call(machine, argument, memory, vcpu_id))`` (``driver.tasks``) is
a future of what ``ioctl`` returns, done already unless it has to wait; ``KvmError`` has the errno. KVM_RUN alone is
begun otherwise: ``machine.start_run(...).task`` is such a future of a ``RunResult``.
"""

from __future__ import annotations

from collections.abc import Iterator

from kickstand.core.errors import KvmError
from kickstand.core.uapi import Fd, unknown_errno
from kickstand.runtime.calls.ioctl import Declaration, declaration
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

REQUEST = 0xFFFF_FFFF  # the kernel takes an unsigned int: what a sign extension put above it does not count


def _declared(of: type) -> Iterator[Declaration]:
    for base in of.__mro__:
        yield from filter(None, map(declaration, vars(base).values()))


DECLARED: tuple[Declaration, ...] = (*_declared(Registry), *_declared(Machine))
_BY_REQUEST = {(found.abi.fd, found.abi.request): found for found in DECLARED if found.abi is not None}


def find(fd: Fd, request: int) -> Declaration:
    """Return the ioctl that this kind of descriptor knows by this request code.

    ``KvmError`` ENOTTY (a VM), EINVAL (the system, a vCPU): it knows none.
    """
    found = _BY_REQUEST.get((fd, request & REQUEST))
    if found is None:
        raise KvmError(unknown_errno(fd), hex(request & REQUEST), f"a {fd.value} descriptor does not know it")
    return found
