"""Alternative (a) taken literally."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.shared.requests import KVM_REQ_USERSPACE_KICK
from kickstand.core.variants.clear_on_exit import ClearOnExit

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.kvm_main import AnyVcpu


class CheckNotTest(ClearOnExit):
    """s/kvm_test_request/kvm_check_request/ at all three sites, the one that ends a sleep included."""

    def block_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.check(KVM_REQ_USERSPACE_KICK)
