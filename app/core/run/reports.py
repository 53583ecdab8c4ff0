"""What a vCPU tells those who watch: its visible state, its mode, requests, entries and accesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from kickstand.core.run.exits import Access, IoExit, MmioExit
from kickstand.core.run.results import event_of
from kickstand.core.run.watched import Watched
from kickstand.core.shared.requests import Mode, Request
from kickstand.core.trace import (
    GUEST,
    KVM_ENTRY,
    KVM_MAKE_REQUEST,
    KVM_MODE,
    NO_FIELDS,
    STATE_CHANGES,
    VCPU_STATE,
    Fields,
    Tracer,
    VcpuState,
)

REQUESTS: Mapping[Request, Fields] = {request: {"request": request.kernel_name} for request in Request}
MODES: Mapping[Mode, Fields] = {mode: {"mode": mode.name} for mode in Mode}


class Traced(Protocol):
    """Who has a tracer: the VM."""

    @property
    def trace(self) -> Tracer: ...


V = TypeVar("V", bound=Traced)


class Reports(Generic[V]):
    """The half of a vCPU that tells. Nothing here is an operation: the explorer does not see it."""

    id: int
    vm: V
    watched: Watched

    def entered(self) -> None:
        """Count and report a guest entry."""
        self.watched.entered()
        self.vm.trace(KVM_ENTRY, self.id, NO_FIELDS)
        self.show(GUEST)

    def show(self, state: VcpuState) -> None:
        """Report a change of the visible state."""
        old = self.watched.state
        if state is not old:
            self.watched.state = state
            self.vm.trace(VCPU_STATE, self.id, STATE_CHANGES[old, state])

    def show_mode(self, mode: Mode) -> None:
        """Report a change of ``vcpu->mode``."""
        self.vm.trace(KVM_MODE, self.id, MODES[mode])

    def show_request(self, request: Request) -> None:
        """Report that a request is made."""
        self.vm.trace(KVM_MAKE_REQUEST, self.id, REQUESTS[request])

    def trace_access(self, exit: Access) -> None:
        """Report an access that userspace is to complete."""
        if isinstance(exit, MmioExit | IoExit):
            tracepoint, fields = event_of(exit)
            self.vm.trace(tracepoint, self.id, fields)
