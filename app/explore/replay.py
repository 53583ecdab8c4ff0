"""A counterexample performed on the shipped runtime: real asyncio tasks, real objects, one operation at a time.

Each task runs its core coroutine through ``app.runtime.tasks.perform``, as the server does. Before an
operation it waits at a turnstile until the schedule names it; what happens then is observed afresh, and the
property has to fall here too. If it does not, the explorer is wrong: ``ReplayError``.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from types import MethodType
from typing import Any

from app.core.atomics import Shared, outside
from app.core.memslots import Memslots
from app.core.requests import VcpuMode
from app.core.trace import Fields
from app.core.variants import Variant
from app.explore.objects import Trap
from app.explore.observe import AT_HOME, Flag, Label, Observer, label_of
from app.explore.properties import PROPERTIES
from app.explore.scenarios import Scenario
from app.explore.threads import Stage
from app.explore.tokens import Schedule
from app.explore.world import World, build
from app.runtime.tasks import perform
from app.runtime.views import region

PATIENCE = 50  # turns of the loop within which a task that was let go reaches its next operation
MAPPED = "memory_regions"  # an event of the replay alone: the map that guests see
LOOPS = 3  # how often a loop is gone through before it is believed


class ReplayError(AssertionError):
    """The shipped runtime did not do what the explorer found: an internal error of the explorer."""


class Gated:
    """Stands in for a shared object; an atomic method waits for its thread's turn, then is the real one."""

    def __init__(self, real: Shared, replay: Replay) -> None:
        self._real = real
        self._replay = replay

    def __getattr__(self, name: str) -> Any:
        real = self._real
        method = getattr(type(real), name, None)
        if getattr(method, "atomic", False):
            return lambda *args, **kwargs: self._operate(name, args, kwargs)
        if iscoroutinefunction(method):
            return MethodType(method, self)
        return getattr(real, name)

    async def _operate(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        replay = self._replay
        if replay.closing:
            plain = tuple(arg._real if isinstance(arg, Gated) else arg for arg in args)  # noqa: SLF001
            return await getattr(self._real, name)(*plain, **kwargs)
        thread = await outside(replay.turn(f"{replay.names.get(id(self), type(self._real).__name__)}.{name}"))
        before = self._real.state()
        plain = tuple(arg._real if isinstance(arg, Gated) else arg for arg in args)  # noqa: SLF001  # one of its own
        result = await getattr(self._real, name)(*plain, **kwargs)
        if isinstance(self._real, VcpuMode) and name == "interrupted":
            replay.seen[thread].eintr_in_row = 0  # the guest was entered
        replay.performed(thread, Trap(0, name, plain), result, before, self._real.state())
        if isinstance(self._real, Memslots) and self._real.state() != before:
            replay.mapped(self._real)
        return result


@dataclass(frozen=True, slots=True)
class Told:
    """What the core reported, as the server's watchers get it, after ``operations`` of the schedule."""

    operations: int
    vm: str
    event: str
    vcpu: int | None
    fields: Mapping[str, object]


@dataclass(slots=True)
class Seen:
    """What the replay saw of one thread."""

    observer: Observer
    memory: int = 0
    flags: int = 0
    eintr_in_row: int = 0


@dataclass(slots=True)
class Replay:
    """One run of a schedule."""

    scenario: Scenario
    variant: type[Variant]
    behaviour: str
    schedule: Schedule
    names: dict[int, str] = field(default_factory=dict)
    fallen: set[str] = field(default_factory=set)
    log: list[tuple[int, str]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    closing: bool = False  # clean-up runs freely
    world: World = field(init=False)
    seen: list[Seen] = field(default_factory=list)
    waiting: dict[int, tuple[asyncio.Future[int], str]] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    choices: deque[int] = field(default_factory=deque)

    def run(self) -> None:
        """Perform the schedule. Raises ``ReplayError`` unless the property falls."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.world = build(self.scenario, self.variant, self.behaviour, lambda shared: Gated(shared, self))
        self._check_schedule()
        self.names = {id(shared): name for shared, name in self.world.named}
        for vm in self.world.vms.values():
            vm.trace = partial(self._tell, vm.id)
            self.told.append(Told(0, vm.id, MAPPED, None, {"memory_regions": _map(vm.memslots)}))
        self.choices = deque(self.schedule.choices)
        tasks = []
        coroutines: list[Coroutine[Any, Any, Any]] = []
        for number, thread in enumerate(self.world.threads):
            self.seen.append(Seen(Observer(self.world.kept[thread.vm], ioctl=thread.kind == "ioctl")))
            coroutines.append(thread.make())
            task = asyncio.create_task(perform(coroutines[-1], self._choose))
            self.numbers[task] = number
            tasks.append(task)
        try:
            await self._settle(None)
            await self._perform(coroutines)
        finally:
            self.closing = True
            for task in tasks:
                task.cancel()
            for future, _ in self.waiting.values():
                future.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check_schedule(self) -> None:
        """A token that somebody changed may name threads that there are not."""
        threads = len(self.world.threads)
        if max((*self.schedule.threads, self.schedule.vcpu)) >= threads:
            raise ReplayError(f"the schedule names a thread beyond the {threads} of its scenario")
        if self.schedule.loop > len(self.schedule.threads):
            raise ReplayError("the schedule repeats more operations than it has")

    async def _perform(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        threads, loop = self.schedule.threads, self.schedule.loop
        prefix, cycle = (threads[:-loop], threads[-loop:]) if loop else (threads, ())
        loop_choices = list(self.choices)
        for thread in prefix:
            await self._let_go(thread)
        loop_choices = list(self.choices)
        if loop:
            await self._go_round(cycle, loop_choices, coroutines)
        prop = self.schedule.prop
        if prop in self.fallen:
            return
        if prop == "no_bystander":
            await self._expect_bystander(coroutines)
        elif PROPERTIES[prop].safety and prop != "deadlock":
            self._expect(False, "the property did not fall")
        elif not loop:
            await self._expect_stuck(coroutines)

    async def _go_round(
        self, cycle: tuple[int, ...], choices: list[int], coroutines: list[Coroutine[Any, Any, Any]]
    ) -> None:
        prop, about = self.schedule.prop, self.schedule.vcpu
        for _ in range(LOOPS):
            self.choices = deque(choices)
            self.seen[about].flags = 0
            for thread in cycle:
                await self._let_go(thread)
                if prop in ("progress", "resume_runs"):
                    self._expect(not label_of(coroutines[about]) & AT_HOME, "the vCPU got into its guest")
                if prop == "kick_returns":
                    self._expect(self._stage(about) is Stage.KICKING, "the KICK returned")
                if prop == "livelock":
                    self._expect(self._window(self.world.threads[about].vm), "the window closed")
            if prop == "livelock":
                self._expect(bool(self.seen[about].flags & Flag.EINTR), "no EINTR in the loop")

    async def _expect_stuck(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        """Nobody can move: let everybody try."""
        for number in range(len(coroutines)):
            if number in self.waiting:
                self.waiting.pop(number)[0].set_result(number)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        prop, about = self.schedule.prop, self.schedule.vcpu
        self._expect(not self.waiting, "somebody could move")
        if prop == "kick_returns":
            self._expect(self._stage(about) is Stage.KICKING, "the KICK returned")
        if prop in ("progress", "resume_runs"):
            self._expect(not label_of(coroutines[about]) & AT_HOME, "the vCPU is in its guest or halted")

    async def _expect_bystander(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        about = self.schedule.vcpu
        vm = self.world.threads[about].vm
        self._expect(self._stage(about) is Stage.KICKING, "the VMM is not in KICK")
        for number, thread in enumerate(self.world.threads):
            if thread.kind != "vmm" and thread.vm == vm:
                inside = label_of(coroutines[number]) & (Label.INSIDE_RUN | Label.INSIDE_IOCTL)
                self._expect(not inside, "a user of the VM's own slots was inside")
        self._expect(about in self.waiting, "the KICK is not at an operation")
        self.waiting.pop(about)[0].set_result(about)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        self._expect(about not in self.waiting and self._stage(about) is Stage.KICKING, "the KICK went on")

    # -- the turnstile -----------------------------------------------------------------------------------

    async def turn(self, operation: str) -> int:
        """Wait until the schedule names the calling task; return its number."""
        number = self.numbers[asyncio.current_task()]
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting[number] = (future, operation)
        return await future

    async def _let_go(self, thread: int) -> None:
        if thread not in self.waiting:
            raise ReplayError(f"step {len(self.log) + 1}: {self.world.threads[thread].name} is not at an operation")
        future, operation = self.waiting.pop(thread)
        count = len(self.log)
        future.set_result(thread)
        await self._settle(thread)
        if len(self.log) == count:
            raise ReplayError(f"step {count + 1}: {self.world.threads[thread].name} blocks in {operation}")

    async def _settle(self, thread: int | None) -> None:
        """Run the loop until the task is at its next operation or has ended."""
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
            if thread is not None and thread in self.waiting:
                return

    def _choose(self, alternatives: int) -> int:
        return self.choices.popleft() if self.choices else 0

    # -- observing ---------------------------------------------------------------------------------------

    def mapped(self, memslots: Memslots) -> None:
        """Note the memory map as guests see it now: watchers of a server are told only when the ioctl is over."""
        vm = next(vm for vm in self.world.vms.values() if getattr(vm.memslots, "_real", None) is memslots)
        self._tell(vm.id, MAPPED, None, {"memory_regions": _map(memslots)})

    def _tell(self, vm: str, event: str, vcpu: int | None, fields: Fields, /) -> None:
        thread, order, done = self.numbers[asyncio.current_task()], self.schedule.threads, len(self.log)
        if self.closing or done > len(order) or thread not in order:
            return
        if thread not in order[:done]:  # a task comes to its first operation before the schedule names it
            done = order.index(thread) + 1
        self.told.append(Told(done, vm, event, vcpu, fields))

    def performed(self, thread: int, trap: Trap, result: Any, before: Any, after: Any) -> None:
        """Note one operation, and which properties it makes fall."""
        seen = self.seen[thread]
        seen.memory, flags = seen.observer.see(trap, result, seen.memory, (before, after))
        seen.flags |= flags
        self.log.append((thread, trap.method))
        for item in PROPERTIES.values():
            if flags & item.flag:
                self.fallen.add(item.name)
        window = self._window(self.world.threads[thread].vm)
        if window and flags & Flag.ACCESS:
            self.fallen.add("closed_window")
        if window and flags & Flag.CONSUMED:
            self.fallen.add("no_bystander")
        if not window:
            seen.eintr_in_row = 0
        if trap.method == "run_returned":
            seen.eintr_in_row = seen.eintr_in_row + 1 if window and trap.args[0].errno == errno.EINTR else 0
            if seen.eintr_in_row > 2:
                self.fallen.add("bounded_busy")

    def _stage(self, thread: int) -> Stage:
        transaction = self.world.threads[thread].transaction
        if transaction is None:
            raise ReplayError(f"{self.world.threads[thread].name} is no VMM, and the property is about one")
        stage: Stage = transaction.stage
        return stage

    def _window(self, vm: str) -> bool:
        return any(
            thread.kind == "vmm" and thread.vm == vm and thread.transaction.stage is Stage.WINDOW
            for thread in self.world.threads
        )

    def _expect(self, held: bool, complaint: str) -> None:
        if not held:
            raise ReplayError(f"{self.schedule.prop} was not confirmed on the shipped runtime: {complaint}")


def _map(memslots: Memslots) -> list[dict[str, Any]]:
    return [region(slot) for slot in memslots.slots.values() if not slot.invalid]


def replay(scenario: Scenario, variant: type[Variant], behaviour: str, schedule: Schedule) -> Replay:
    """Perform ``schedule`` on the shipped runtime; return the run. ``ReplayError`` if the property holds."""
    run = Replay(scenario, variant, behaviour, schedule)
    run.run()
    return run
