"""What a vCPU's thread does in userspace: KVM_RUN for ever, and what its VMM wrote around that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kickstand.core.atomics import Killed
from kickstand.explore.world.threads import Gate, Moment, Operation, ResumeFlag, Return, Userspace, VmmThread, describe

if TYPE_CHECKING:
    from kickstand.core.vcpu import Vcpu

Handlers = Mapping[Moment, Sequence[Operation]]


@dataclass(frozen=True, slots=True)
class Signals:
    """How a VMM treats the signal with which it gets vCPU threads out of KVM_RUN.

    ``blocked``: outside KVM_RUN (KVM_SET_SIGNAL_MASK), so that one that comes early ends the next KVM_RUN.
    ``immediate_exit``: the handler sets it, and the thread clears it after EINTR.
    """

    blocked: bool = True
    immediate_exit: bool = False


MASKED = Signals()


@dataclass(slots=True, eq=False)
class VcpuThread:
    """One vCPU's thread. ``flag`` None: the careless userspace; ``handlers`` are by moment; ``acts`` performs them."""

    vcpu: Vcpu
    userspace: Userspace
    flag: ResumeFlag | None
    created: Gate | None
    acts: VmmThread
    handlers: Handlers
    signals: Signals

    async def run(self) -> None:
        """Call KVM_RUN for ever."""
        if self.created is not None:
            await self.created.wait()
        await self.handle(Moment.START)
        while True:
            await self.handle(Moment.BEFORE_RUN)
            if not self.signals.blocked:
                await self.handle_signal()
            what = describe(await self.vcpu.run_from_userspace())
            await self.userspace.run_returned(what)
            await self.userspace.exit_handled(self.vcpu.run_page)
            if self.acts.fate is not None and not await self.acts.fate.is_alive():
                raise Killed
            await self.returned(what)

    async def handle_signal(self) -> None:
        """The handler of a signal that came while the thread was not in KVM_RUN."""
        await self.userspace.handle_signal(self.vcpu.task, self.vcpu.run_page, self.signals.immediate_exit)

    async def returned(self, what: Return) -> None:
        """What the VMM makes of it."""
        if what.errno and self.signals.immediate_exit:
            await self.vcpu.run_page.set_immediate_exit(False)
        await self.handle(Moment.AFTER_RUN)
        if what.errno:
            await self.handle(Moment.EINTR)
        elif what.access is not None:
            await self.handle(what.access)
        if what.errno and self.flag is not None:
            await self.flag.wait()

    async def handle(self, moment: Moment) -> None:
        """Perform what the VMM does at that moment."""
        if moment in self.handlers:
            await self.acts.each(self.handlers[moment])
