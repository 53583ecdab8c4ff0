"""Alternative (a) of the thread: the vCPU takes its own request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.shared.requests import KVM_REQ_USERSPACE_KICK
from kickstand.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.kvm_main import AnyVcpu


class ClearOnExit(Sticky):
    """A vCPU clears its request when it returns EINTR; RESUME clears the rest."""

    def entry_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.check(KVM_REQ_USERSPACE_KICK)

    def exit_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.check(KVM_REQ_USERSPACE_KICK)
