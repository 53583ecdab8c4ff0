"""A counterexample performed on the shipped runtime: real asyncio tasks, real objects, one operation at a time.

Each task runs its core coroutine through ``kickstand.runtime.driver.tasks.perform``, as the server does. Before an
operation it waits at a turnstile until the schedule names it; what happens then is observed afresh, and the
property has to fall here too. If it does not, the explorer is wrong: ``ReplayError``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from types import MethodType
from typing import Any

from kickstand.core.atomics import Killed, Shared, outside
from kickstand.core.memslots import Memslots
from kickstand.core.trace import Fields
from kickstand.explore.evidence.judge import Judge
from kickstand.explore.evidence.tokens import Schedule
from kickstand.explore.learn.objects import Raised, Trap
from kickstand.explore.learn.observe import HOME, At, Did
from kickstand.explore.learn.where import Where, where
from kickstand.explore.search.properties import Name, property_of
from kickstand.explore.world.build import build
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.own import Protocol
from kickstand.explore.world.parts import Role, World
from kickstand.explore.world.threads import Stage
from kickstand.runtime.driver.tasks import perform
from kickstand.runtime.observed.views import region

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
        method: Any = getattr(type(real), name, None)
        if getattr(method, "atomic", False):
            return lambda *args, **kwargs: self._operate(method, args, kwargs)
        if iscoroutinefunction(method):
            return MethodType(method, self)
        return getattr(real, name)

    async def _operate(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        replay = self._replay
        if replay.closing:
            plain = tuple(arg._real if isinstance(arg, Gated) else arg for arg in args)  # noqa: SLF001
            return await method(self._real, *plain, **kwargs)
        thread = await outside(
            replay.turn(f"{replay.names.get(id(self), type(self._real).__name__)}.{method.__name__}")
        )
        before = self._real.state()
        plain = tuple(arg._real if isinstance(arg, Gated) else arg for arg in args)  # noqa: SLF001  # one of its own
        operate = partial(method, **kwargs)
        way = replay.world.way(thread, method, self, args)
        try:
            if way is None:
                result = await operate(self._real, *plain)
            else:
                perform, objects = way
                result = await perform(operate, (self._real, *plain), [item._real for item in objects])  # noqa: SLF001
        except (Exception, Killed) as error:
            trap = Trap(id(self._real), method, plain)
            replay.performed(thread, trap, Raised(error), (before, self._real.state()))
            raise
        replay.performed(thread, Trap(id(self._real), method, plain), result, (before, self._real.state()))
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
class Replay:
    """One run of a schedule."""

    cell: Cell | Protocol
    schedule: Schedule
    names: dict[int, str] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)
    places: list[Where | None] = field(default_factory=list)  # in the source, of each operation in the log
    told: list[Told] = field(default_factory=list)
    closing: bool = False  # clean-up runs freely
    world: World = field(init=False)
    judge: Judge = field(init=False)
    waiting: dict[int, tuple[asyncio.Future[int], str]] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    choices: deque[int] = field(default_factory=deque)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def run(self) -> None:
        """Perform the schedule. Raises ``ReplayError`` unless the property falls."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.world = build(self.cell, lambda shared: Gated(shared, self))
        self._check_schedule()
        self.names = {id(shared): name for shared, name in self.world.named}
        for vm in self.world.vms.values():
            vm.trace = partial(self._tell, vm.id)
            self.told.append(Told(0, vm.id, MAPPED, None, {"memory_regions": _map(vm.memslots)}))
        self.choices = deque(self.schedule.choices)
        tasks = self.tasks
        coroutines: list[Coroutine[Any, Any, Any]] = []
        for number, thread in enumerate(self.world.threads):
            coroutines.append(thread.make())
            task = asyncio.create_task(perform(coroutines[-1], self._choose))
            self.numbers[task] = number
            tasks.append(task)
        self.judge = Judge(self.world, coroutines)
        try:
            await self._settle(None)
            self.judge.settled(None)
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
        about = self.schedule.vcpu - (self.schedule.prop == Name.DEADLOCK)
        if max((*self.schedule.threads, about)) >= threads:
            raise ReplayError(f"the schedule names a thread beyond the {threads} of its scenario")
        if self.schedule.loop > len(self.schedule.threads):
            raise ReplayError("the schedule repeats more operations than it has")

    async def _perform(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        threads, loop = self.schedule.threads, self.schedule.loop
        if self.schedule.prop == Name.LOST_WAKEUP:
            await self._lose_wakeup()
            return
        prefix, cycle = (threads[:-loop], threads[-loop:]) if loop else (threads, ())
        loop_choices = list(self.choices)
        for thread in prefix:
            await self._let_go(thread)
        loop_choices = list(self.choices)
        if loop:
            await self._go_round(cycle, loop_choices, coroutines)
        prop = self.schedule.prop
        if prop in self.judge.fallen:
            return
        if prop == Name.NO_BYSTANDER:
            await self._expect_bystander(coroutines)
        elif prop == Name.ASSERTION:
            self._expect(self.tasks[self.schedule.vcpu].done(), "the thread goes on")
            self._expect(self.tasks[self.schedule.vcpu].exception() is not None, "the thread raised nothing")
        elif property_of(prop).safety and prop != Name.DEADLOCK:
            self._expect(False, "the property did not fall")
        elif not loop:
            await self._expect_stuck(coroutines)

    async def _go_round(
        self, cycle: tuple[int, ...], choices: list[int], coroutines: list[Coroutine[Any, Any, Any]]
    ) -> None:
        prop, about = self.schedule.prop, self.schedule.vcpu
        for _ in range(LOOPS):
            self.choices = deque(choices)
            self.judge.seen[about].flags = 0
            for thread in cycle:
                await self._let_go(thread)
                if prop in (Name.PROGRESS, Name.RESUME_RUNS):
                    self._expect(not self.judge.places.of(coroutines[about]) & HOME, "the vCPU got into its guest")
                if prop == Name.KICK_RETURNS:
                    self._expect(self._stage(about) is Stage.KICKING, "the KICK returned")
                if prop == Name.LIVELOCK:
                    self._expect(self.judge.window(about), "the window closed")
                self._expect(prop not in self.judge.came, "it became true")
            if prop == Name.SIGNAL_LEAVES:
                self._expect(not self.judge.seen[about].flags & Did.RETURNED, "KVM_RUN returned")
            if prop == Name.LIVELOCK:
                self._expect(bool(self.judge.seen[about].flags & Did.EINTR), "no EINTR in the loop")

    async def _lose_wakeup(self) -> None:
        """Park the thread that waits, perform the operation that ought to wake it, and see it sleep on."""
        *before, last = self.schedule.threads
        about = self.schedule.vcpu
        for thread in before:
            await self._let_go(thread)
        self._expect(about in self.waiting and last != about, "nobody is about to wait")
        done = len(self.log)
        self.waiting.pop(about)[0].set_result(about)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        self._expect(len(self.log) == done, "it need not wait")
        await self._let_go(last)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        self._expect(all(thread != about for thread, _ in self.log[done:]), "it was woken")

    async def _expect_stuck(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        """Nobody can move: let everybody try. Where one thread is left behind, let that one try."""
        if self.schedule.prop == Name.DEADLOCK and self.schedule.vcpu:
            await self._expect_left_behind(self.schedule.vcpu - 1)
            return
        for number in range(len(coroutines)):
            if number in self.waiting:
                self.waiting.pop(number)[0].set_result(number)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        prop, about = self.schedule.prop, self.schedule.vcpu
        self._expect(not self.waiting, "somebody could move")
        self._expect(prop not in self.judge.came, "it became true")
        if prop == Name.KICK_RETURNS:
            self._expect(self._stage(about) is Stage.KICKING, "the KICK returned")
        if prop in (Name.PROGRESS, Name.RESUME_RUNS):
            self._expect(not self.judge.places.of(coroutines[about]) & HOME, "the vCPU is in its guest or halted")
        if prop == Name.SIGNAL_LEAVES:
            inside = self.judge.places.of(coroutines[about]) & At.INSIDE_RUN
            self._expect(bool(inside) and self.judge.signalled(about), "no signal is pending inside KVM_RUN")

    async def _expect_left_behind(self, thread: int) -> None:
        self._expect(thread in self.waiting, "the thread is not at an operation")
        done = len(self.log)
        self.waiting.pop(thread)[0].set_result(thread)
        for _ in range(PATIENCE):
            await asyncio.sleep(0)
        self._expect(len(self.log) == done, "the thread went on")

    async def _expect_bystander(self, coroutines: list[Coroutine[Any, Any, Any]]) -> None:
        about = self.schedule.vcpu
        vm = self.world.threads[about].vm
        self._expect(self._stage(about) is Stage.KICKING, "the VMM is not in KICK")
        for number, thread in enumerate(self.world.threads):
            if thread.role is not Role.VMM and thread.vm == vm:
                inside = self.judge.places.of(coroutines[number]) & (At.INSIDE_RUN | At.INSIDE_IOCTL)
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
        place = where(self.judge.coroutines[thread])
        future.set_result(thread)
        await self._settle(thread)
        if len(self.log) == count:
            raise ReplayError(f"step {count + 1}: {self.world.threads[thread].name} blocks in {operation}")
        self.places[count] = place
        self.judge.settled(thread)

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

    def performed(self, thread: int, trap: Trap, result: Any, states: tuple[Any, Any]) -> None:
        """Note one operation."""
        self.judge.performed(thread, trap, result, states)
        self.log.append((thread, trap.name))
        self.places += [None] * (len(self.log) - len(self.places))

    def _stage(self, thread: int) -> Stage:
        if self.world.threads[thread].transaction is None:
            raise ReplayError(f"{self.world.threads[thread].name} is no VMM, and the property is about one")
        return self.judge.stage(thread)

    def _expect(self, held: bool, complaint: str) -> None:
        if not held:
            raise ReplayError(f"{self.schedule.prop} was not confirmed on the shipped runtime: {complaint}")


def _map(memslots: Memslots) -> list[dict[str, Any]]:
    return [region(slot) for slot in memslots.slots.values() if not slot.invalid]


def replay(cell: Cell | Protocol, schedule: Schedule) -> Replay:
    """Perform ``schedule`` on the shipped runtime; return the run. ``ReplayError`` if the property holds."""
    run = Replay(cell, schedule)
    run.run()
    return run
