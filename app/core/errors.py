"""What an emulated ioctl answers when it fails: an errno, the ioctl, and the rule that was broken."""

from __future__ import annotations

import errno as _errno

# Python knows this number as ENOTSUP, Linux does not.
_NAMES: dict[int, str] = {**_errno.errorcode, _errno.EOPNOTSUPP: "EOPNOTSUPP"}


class KvmError(Exception):
    """An ioctl returned -1 with ``errno``.

    ``ioctl`` is the KVM name (``KVM_SET_USER_MEMORY_REGION``), ``detail`` one sentence for a person that
    names the rule, ``field`` the argument that broke it where there is one, and ``extra`` further members
    for a machine (for example the vCPUs that still hold the read side when a kick timed out).
    """

    def __init__(self, errno: int, ioctl: str, detail: str, *, field: str | None = None, **extra: object) -> None:
        super().__init__(f"{ioctl}: {errno_name(errno)}: {detail}")
        self.errno = errno
        self.ioctl = ioctl
        self.detail = detail
        self.field = field
        self.extra = extra


def errno_name(errno: int) -> str:
    """Return the symbolic name of an errno value: ``4`` gives ``"EINTR"``, an unknown one ``"E<n>"``."""
    return _NAMES.get(errno, f"E{errno}")
