"""Watches one thread as it performs operations: what each did, and what there is to remember of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.atomics import Killed, Mutex, Task
from kickstand.core.run.exits import IoExit, MmioExit
from kickstand.core.run.run_page import KvmRun
from kickstand.core.shared.requests import VcpuMode
from kickstand.core.shared.rwsem import RwSemaphore, Srcu
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.explore.learn.objects import Raised, Trap, below_zero
from kickstand.explore.learn.observe import Did
from kickstand.explore.world import own
from kickstand.explore.world.ghosts import WatchedMemslots
from kickstand.explore.world.parts import Kept
from kickstand.explore.world.threads import Return, Transaction, Userspace


class Access(IntEnum):
    """How far the device access is that a vCPU's guest has made last."""

    NONE = 0
    FILLED = 1  # KVM_RUN has the exit ready
    ASKED = 2  # userspace got it: the next KVM_RUN completes it
    LOST = 3  # userspace got EINTR instead


class Memory(NamedTuple):
    """What an observer remembers of its thread; ``held`` are objects and how they are held."""

    access: Access = Access.NONE
    held: frozenset[tuple[int, str]] = frozenset()
    dying: bool = False  # it has been killed, and cleans up


NOTHING = Memory()
READ, WRITE, SRCU, SLOTS, MUTEX, GUEST, SLEEPING = "read", "write", "srcu", "slots", "mutex", "guest mode", "sleeping"
Sight = tuple[Memory, int]  # the new memory, and what was done
See = Callable[[Trap, Any, Memory, tuple[Any, Any]], Sight]


class Observer:
    """Watches one thread: a vCPU's, a VMM's, or (``ioctl``) another user's of the slots."""

    def __init__(self, kept: Kept, *, ioctl: bool) -> None:
        self.kept_reads, self.kept_writes = kept
        self.sees: dict[Any, See] = {
            Userspace.run_returned: self._returned,
            Userspace.access_completed: self._completed,
            KvmRun.fill: self._filled,
            VcpuMode.enter: self._entered,
            WatchedMemslots.guest_access: self._accessed,
            WatchedMemslots.publish: self._published,
            WatchedMemslots.fetch_dirty: self._fetched,
        } | self._locks()
        if ioctl:
            self.sees[WatchedMemslots.lookup] = self._looked_up
        self.with_others = frozenset[Any](
            (
                WatchedMemslots.guest_access,
                WatchedMemslots.lookup,
                WatchedMemslots.publish,
                Transaction.kick_begins,
                Transaction.kick_returned,
                Transaction.resume_begins,
            )
        )
        self.run_returned: Any = Userspace.run_returned

    def _locks(self) -> dict[Any, See]:
        return {
            Mutex.lock_or_queue: partial(self._takes, MUTEX),
            own.Mutex.lock_or_queue: partial(self._takes, MUTEX),
            Mutex.wait_turn: partial(self._takes, MUTEX),
            Mutex.unlock: partial(self._gives, MUTEX),
            RwSemaphore.read_or_queue: partial(self._takes, READ),
            RwSemaphore.write_or_queue: partial(self._takes, WRITE),
            RwSemaphore.wait_turn: self._granted,
            RwSemaphore.wait_turn_killable: self._granted,
            RwSemaphore.up_read: partial(self._gives, READ),
            RwSemaphore.up_write: partial(self._gives, WRITE),
            Srcu.read_lock: partial(self._takes, SRCU),
            Srcu.read_unlock: partial(self._gives, SRCU),
            VcpuArch.srcu_read_lock: partial(self._takes, SLOTS),
            VcpuArch.srcu_read_unlock: self._leaves_srcu,
            VcpuMode.leave: partial(self._drops, GUEST),
            Task.set_interruptible: self._sleeps,
            Task.set_running: partial(self._drops, SLEEPING),
        }

    def see(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        """Return the new memory and what an operation did; ``states`` of its object before and after."""
        if type(result) is Raised:
            return memory._replace(dying=memory.dying or type(result.error) is Killed), 0
        sees = self.sees.get(trap.method)
        memory, did = sees(trap, result, memory, states) if sees is not None else (memory, 0)
        return memory, did | (Did.UNBALANCED if below_zero(states[1]) else 0)

    def together(self, trap: Trap) -> bool:
        """A property looks at this operation together with what other threads do: it is visible whoever shares it."""
        if trap.method is self.run_returned:
            return bool(trap.args[0].errno)
        return trap.method in self.with_others

    # -- accesses and exits ------------------------------------------------------------------------------

    def _filled(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        if not isinstance(trap.args[0], IoExit | MmioExit):
            return memory._replace(access=Access.NONE), 0
        lost = memory.access is Access.ASKED
        return memory._replace(access=Access.FILLED), Did.FILLED | (Did.MISCOMPLETED if lost else 0)

    def _returned(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        what: Return = trap.args[0]
        access, did = memory.access, Did.RETURNED
        if what.errno == errno.EINTR:
            did |= Did.EINTR
            if access is Access.FILLED:
                did |= Did.LOST_EXIT
                access = Access.LOST
        elif what.gpa is not None:
            kept = self.kept_writes if what.writes else self.kept_reads
            if what.gpa >> PAGE_SHIFT in kept:
                did |= Did.SPURIOUS_MMIO
        if access is Access.FILLED and not what.errno:
            access = Access.ASKED
            did |= Did.ASKED
        return Memory(access), did | (Did.UNBALANCED if memory.held else 0)

    def _completed(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        again = memory.access in (Access.NONE, Access.FILLED)
        return memory._replace(access=Access.NONE), Did.MISCOMPLETED if again else 0

    def _entered(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        lost = memory.access is Access.ASKED
        memory = memory._replace(held=memory.held | {(trap.object, GUEST)})
        return memory, Did.MISCOMPLETED if lost else 0

    # -- memory slots ------------------------------------------------------------------------------------

    def _accessed(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        missing = result is None and trap.args[0] >> PAGE_SHIFT in self.kept_reads
        did = Did.ACCESS | (Did.MISSING_SLOT if missing else 0)
        return memory, did | (Did.DIRTIED if result is not None and result.logged and trap.args[1] else 0)

    def _looked_up(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        return memory, Did.CONSUMED

    def _published(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        (*_, owed), (*_, left) = states
        did = Did.DIRTY_LOST if dict(owed).keys() - dict(left).keys() else Did(0)
        return memory, did | (Did.DYING if memory.dying else 0)

    def _fetched(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        (*_, owed) = states[1]
        return memory, Did.DIRTY_LOST if trap.args[0] in dict(owed) else 0

    # -- what is held ------------------------------------------------------------------------------------

    def _takes(self, how: str, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        """An operation that takes its object, unless it returns false: whoever holds it already must not try."""
        twice = any(held == trap.object for held, _ in memory.held)
        if result is not False:
            memory = memory._replace(held=memory.held | {(trap.object, how)})
        return memory, Did.UNBALANCED if twice else 0

    def _granted(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        if result is False:
            return memory, 0
        how = str(trap.args[1].value)
        return memory._replace(held=memory.held | {(trap.object, how)}), 0

    def _gives(self, how: str, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        """An operation that gives its object back."""
        held = (trap.object, how) in memory.held
        did = (0 if held else Did.UNBALANCED) | (Did.UNLOCKED if how == MUTEX else 0)
        did |= Did.DYING if memory.dying else 0
        return memory._replace(held=memory.held - {(trap.object, how)}), did

    def _drops(self, how: str, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        """As ``_gives``, where nothing need be held."""
        return memory._replace(held=memory.held - {(trap.object, how)}), 0

    def _leaves_srcu(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        held = (trap.object, SLOTS)
        did = Did.UNLOCKED | (0 if held in memory.held or memory.dying else Did.UNBALANCED)
        return memory._replace(held=memory.held - {held}), did

    def _sleeps(self, trap: Trap, result: Any, memory: Memory, states: tuple[Any, Any]) -> Sight:
        return memory._replace(held=memory.held | {(trap.object, SLEEPING)}), 0
