"""The patch exactly as posted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from kickstand.core.vm import Vm


class GlobalRwsem(Sticky):
    """The patch exactly as posted: one semaphore for all VMs of the host."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.memory_transaction = vm.system.memory_transaction
