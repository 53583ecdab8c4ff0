"""What observers read of a vCPU without an operation: its visible state and its statistics."""

from __future__ import annotations

from dataclasses import dataclass, field

from kickstand.core.run.exits import IoExit, MmioExit, UserExit
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState


@dataclass(slots=True)
class Counters:
    """Statistics for watchers; no part of the protocol."""

    runs: int = 0
    exits: int = 0
    eintr: int = 0
    spins: int = 0  # EINTR again although the guest was not entered since the last EINTR
    entries: int = 0
    halts: int = 0
    halt_wakeups: int = 0
    signal_exits: int = 0
    request_irq_exits: int = 0
    mmio: int = 0
    pio: int = 0
    faults_retried: int = 0

    def exited(self, exit: UserExit | None) -> None:
        """KVM_RUN has returned 0 with this exit."""
        self.exits += 1
        self.mmio += isinstance(exit, MmioExit)
        self.pio += isinstance(exit, IoExit)

    def by_name(self) -> dict[str, int]:
        """All of them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Watched:
    """What observers read of a vCPU without an operation."""

    state: VcpuState = VcpuState.USER
    cause: Cause | None = None
    entered_since_eintr: bool = True
    counters: Counters = field(default_factory=Counters)

    @property
    def inside(self) -> bool:
        """The vCPU is in KVM_RUN, past the gate: neither in userspace nor waiting to be let in."""
        return self.state is not VcpuState.USER and self.state is not VcpuState.WAITING

    def entered(self) -> None:
        """The guest is entered."""
        self.counters.entries += 1
        self.entered_since_eintr = True

    def interrupted(self) -> None:
        """KVM_RUN has returned EINTR."""
        self.counters.eintr += 1
        self.counters.spins += not self.entered_since_eintr
        self.entered_since_eintr = False
