"""``struct kvm_run``: the page that a vCPU's thread shares with the kernel, and what KVM_RUN answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kickstand.core.atomics import Shared, atomic
from kickstand.core.run.exits import UserExit
from kickstand.core.uapi import ExitReason


class Cause(StrEnum):
    """Why KVM_RUN answered EINTR. The last two are a signal that the control plane sent."""

    USERSPACE_KICK = "userspace_kick"
    SIGNAL = "signal"
    IMMEDIATE_EXIT = "immediate_exit"
    POLL_TIMEOUT = "poll_timeout"
    CLIENT_DISCONNECT = "client_disconnect"


KICKED = Cause.USERSPACE_KICK


@dataclass(slots=True)
class RunResult:
    """What KVM_RUN answered: ``ret`` 0 or -1, and what the shared page holds then. Nobody changes it."""

    ret: int
    errno: int | None
    exit_reason: ExitReason
    exit: UserExit | None  # the exit that this call filled in; None unless ``ret`` is 0
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class PageWrites:
    """What a VMM writes into the shared page right before one KVM_RUN; None leaves a field alone."""

    reply: bytes | None = None
    immediate_exit: bool | None = None  # for this call only


class KvmRun(Shared):
    """``struct kvm_run``: the page a vCPU thread shares with the kernel."""

    __slots__ = ("exit_reason", "exit", "reply", "immediate_exit", "kept", "request_interrupt_window")
    FIELDS = ("exit_reason", "exit", "reply", "immediate_exit", "kept", "request_interrupt_window")

    def __init__(self) -> None:
        super().__init__()
        self.exit_reason = ExitReason.UNKNOWN
        self.exit: UserExit | None = None
        self.reply: bytes | None = None  # what userspace wrote as the device's answer; None: nothing new
        self.immediate_exit = False
        self.kept = False  # the user's own immediate_exit, which the end of a kick or of a call does not reset
        self.request_interrupt_window = False

    def load_registers(self, vcpu: Any) -> int:
        """Take over what userspace has written of the vCPU (``sync_regs``): 0 or a negative errno. Here is nothing."""
        return 0

    def store_registers(self, vcpu: Any) -> None:
        """Tell userspace of the vCPU what it wants to know (``store_regs``, ``post_kvm_run_save``)."""

    @atomic
    async def fill(self, exit: UserExit) -> None:
        """Describe an exit to userspace."""
        self.exit_reason = exit.reason
        self.exit = exit

    @atomic
    async def interrupted(self) -> None:
        """A signal ends KVM_RUN: KVM_EXIT_INTR. A kick leaves the exit reason as it was."""
        self.exit_reason = ExitReason.INTR

    @atomic
    async def read(self) -> tuple[ExitReason, UserExit | None]:
        """Userspace reads the exit reason and the exit that was filled in last."""
        return self.exit_reason, self.exit

    @atomic
    async def write(self, page: PageWrites) -> None:
        """Userspace writes the device's answer into the data area, or a flag."""
        if page.reply is not None:
            self.reply = page.reply
        if page.immediate_exit is not None:
            self.immediate_exit = page.immediate_exit

    @atomic
    async def take_reply(self) -> bytes | None:
        """The kernel reads the data area; None if it still holds what the last exit left there."""
        taken, self.reply = self.reply, None
        return taken

    @atomic
    async def set_immediate_exit(self, value: bool) -> None:
        """Userspace's kick, or the end of one, writes ``immediate_exit``."""
        self.immediate_exit = value or self.kept

    @atomic
    async def keep_immediate_exit(self, value: bool) -> None:
        """The user writes ``immediate_exit``: it stays so."""
        self.kept = self.immediate_exit = value

    @atomic
    async def wants_immediate_exit(self) -> bool:
        """The kernel reads ``immediate_exit``."""
        return self.immediate_exit

    @atomic
    async def set_request_interrupt_window(self, value: bool) -> None:
        """Userspace writes ``request_interrupt_window``."""
        self.request_interrupt_window = value

    @atomic
    async def wants_interrupt_window(self) -> bool:
        """The kernel reads ``request_interrupt_window``."""
        return self.request_interrupt_window
