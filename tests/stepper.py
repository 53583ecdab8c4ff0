"""Threads stepped by hand: a test decides which thread performs its next atomic operation.

``World`` builds a ``Vm`` whose shared objects announce every operation before they perform it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from types import coroutine
from typing import ClassVar

from kickstand.core.atomics import Blocked, Choice, Killed, Preempt, Shared, Task
from kickstand.core.memslots import Region
from kickstand.core.uapi import PAGE_SIZE
from kickstand.core.variants import variant as find_variant
from kickstand.core.vm import Switches, Vm
from kickstand.guests.program import compile_program
from kickstand.guests.script import ScriptGuest


@dataclass(frozen=True)
class Gate:
    """The thread is about to perform this operation."""

    name: str


@coroutine
def gate(name):
    yield Gate(name)


class Announced:
    """Stands in for a shared object; atomic operations stop at a gate first."""

    def __init__(self, real):
        self.__dict__["real"] = real

    def __getattr__(self, name):
        real = self.__dict__["real"]
        method = getattr(type(real), name, None)
        if getattr(method, "atomic", False):
            return partial(self._operate, real, name, method)
        if inspect.iscoroutinefunction(method):
            return partial(method, self)
        return getattr(real, name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["real"], name, value)

    async def _operate(self, real, name, method, *args, **kwargs):
        await gate(f"{type(real).__name__}.{name}")
        unwrapped = (argument.real if isinstance(argument, Announced) else argument for argument in args)
        return await method(real, *unwrapped, **kwargs)


class Thread:
    """One coroutine of the core, advanced operation by operation."""

    alive: ClassVar[list[Thread]] = []  # killed after each test, so that none is left to the garbage collector

    def __init__(self, core, choices=()):
        self.core = core
        self.choices = list(choices)
        self.result = None
        self.error = None
        self.done = False
        self.effect = None
        self.alive.append(self)
        self._advance(None)

    @property
    def at(self):
        """The operation that comes next, ``"blocked"``, or ``"done"``."""
        if self.done:
            return "done"
        return self.effect.name if isinstance(self.effect, Gate) else "blocked"

    def _advance(self, answer, *, stop_at_preempt=False):
        try:
            self.effect = self.core.send(answer)
            while isinstance(self.effect, Preempt | Choice):
                if stop_at_preempt and isinstance(self.effect, Preempt):
                    return
                pick = self.choices.pop(0) if isinstance(self.effect, Choice) and self.choices else 0
                self.effect = self.core.send(pick)
        except StopIteration as stop:
            self.result, self.done = stop.value, True
        except Exception as error:
            self.error, self.done = error, True

    def step(self):
        """Perform the next operation, or try a blocked one again."""
        self._advance(None)
        return self

    def run(self, limit=10_000):
        """Go on until the thread blocks or ends."""
        for _ in range(limit):
            if self.done:
                return self
            was_blocked = self.at == "blocked"
            self.step()
            if was_blocked and self.at == "blocked":
                return self
        raise AssertionError(f"still running at {self.at}")

    def run_to(self, operation, limit=10_000):
        """Go on until ``operation`` comes next."""
        for _ in range(limit):
            if self.at == operation:
                return self
            assert not self.done, f"ended before {operation}"
            self.step()
        raise AssertionError(f"{operation} never came; now at {self.at}")

    def kill(self):
        """Tear the thread down where a real one can be: at the next point where it blocks or may be preempted."""
        while not self.done and isinstance(self.effect, Gate):
            self._advance(None, stop_at_preempt=True)
        if self.done:
            return
        try:
            effect = self.core.throw(Killed())
            while isinstance(effect, Gate | Preempt):
                effect = self.core.send(None)
            raise AssertionError(f"the clean-up blocked: {effect}")
        except Killed:
            self.done = True

    @classmethod
    def kill_all(cls):
        """Tear down what a test left running."""
        while cls.alive:
            thread = cls.alive.pop()
            if not thread.done:
                thread.kill()


class World:
    """A VM with RAM at 0..``pages`` pages and script guests, under one variant."""

    def __init__(
        self,
        variant="sticky",
        program=(("spin",),),
        vcpus=1,
        *,
        irqchip=False,
        pages=16,
        guest=None,
        system=None,
        **switches,
    ):
        make = guest or (lambda vcpu: ScriptGuest(vcpu, None, compile_program(list(program))))
        self.vm = Vm(
            "vm",
            find_variant(variant),
            make,
            system=system,
            irqchip=irqchip,
            switches=Switches(**switches),
            share=Announced,
        )
        self.vmm = Announced(Task("vmm"))
        for vcpu_id in range(vcpus):
            self.now(self.vm.create_vcpu(vcpu_id, self.vmm))
        if pages:
            self.slot(0, 0, pages)

    def slot(self, slot, first_page, pages, flags=0):
        """Create, change or (``pages`` 0) delete a slot, whose host memory is at 0x7000_0000."""
        region = Region(slot, flags, first_page * PAGE_SIZE, pages * PAGE_SIZE, 0x7000_0000)
        return self.now(self.vm.set_user_memory_region(region, self.vmm))

    def run_slot_update(self, slot, first_page, pages, tid="vmm"):
        """A thread in KVM_SET_USER_MEMORY_REGION."""
        region = Region(slot, 0, first_page * PAGE_SIZE, pages * PAGE_SIZE, 0x7000_0000)
        return Thread(self.vm.set_user_memory_region(region, Announced(Task(tid))))

    def vcpu(self, vcpu_id=0):
        return self.vm.vcpus[vcpu_id]

    def run_vcpu(self, vcpu_id=0, tid=None, page=None):
        """A thread in KVM_RUN."""
        return Thread(self.vcpu(vcpu_id).run_from_userspace(tid, page))

    def kick(self):
        """A thread in KVM_KICK_ALL_RUNNING_VCPUS."""
        return Thread(self.vm.kick_all_running_vcpus(self.vmm))

    def resume(self):
        return self.now(self.vm.resume_all_kicked_vcpus(self.vmm))

    def now(self, core):
        """Perform a coroutine that does not block."""
        thread = Thread(core).run()
        if thread.error is not None:
            raise thread.error
        assert thread.done, f"blocked: {thread.effect}"
        return thread.result

    def finish(self, *threads, limit=1_000):
        """Let threads take turns until all have ended."""
        for _ in range(limit):
            for thread in threads:
                if not thread.done:
                    thread.step()
            if all(thread.done for thread in threads):
                return
        raise AssertionError(f"no end: {[thread.at for thread in threads]}")


__all__ = ["Announced", "Blocked", "Shared", "Thread", "World"]
