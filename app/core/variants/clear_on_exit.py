"""Alternative (a) of the thread: the vCPU takes its own request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.core.requests import Request
from app.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from app.core.vcpu import Vcpu


class ClearOnExit(Sticky):
    """A vCPU clears its request when it returns EINTR; RESUME clears the rest."""

    async def entry_test(self, vcpu: Vcpu) -> bool:
        return await vcpu.requests.check(Request.USERSPACE_KICK)

    async def exit_test(self, vcpu: Vcpu) -> bool:
        return await vcpu.requests.check(Request.USERSPACE_KICK)
