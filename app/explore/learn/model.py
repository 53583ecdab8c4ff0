"""The global state as a few small numbers: components, and what a step does to them.

A *component* is a thread's stop together with the shared objects that belong to it (its requests, its mode),
or one object that several threads share (the semaphore). Its known states are numbered; a global state is
one number a component. A thread's step reads and writes its own component and the few that its operation
involves, so the steps are a table over those numbers, filled on demand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.local import LocalThread
from kickstand.explore.learn.objects import Trap
from kickstand.explore.learn.observe import At, Did
from kickstand.explore.learn.observer import Memory, Observer
from kickstand.explore.world.parts import Role
from kickstand.explore.world.threads import Stage

SMALL = 8  # an object with at most this many states joins the component of the one VMM that uses it


class Renew(Exception):  # no error: what was concluded does not hold any more
    """New knowledge overturned a conclusion: start over with it."""


class Successor(NamedTuple):
    """One result of a thread's step: the new states of the components of its kind, and what was noted."""

    components: tuple[int, ...]
    flags: int


class Model:
    """Components and steps of one world. ``merge`` False leaves every operation visible."""

    def __init__(self, knowledge: Knowledge, *, merge: bool = True) -> None:
        self.knowledge = knowledge
        self.objects = knowledge.objects
        self.merge = merge
        self.threads = knowledge.threads
        self.users = knowledge.accesses()
        self._assign()
        self.locals = [self._local(number) for number in range(len(self.threads))]
        self.states: list[list[tuple[int, ...]]] = [[] for _ in self.members]
        self.ids: list[dict[tuple[int, ...], int]] = [{} for _ in self.members]
        self.runaway = False  # some runs are not followed, because a count falls below zero there
        self._seen_nodes = [0] * len(self.threads)

    def _assign(self) -> None:
        """Divide the objects: private ones, those of a thread's component, and components of their own."""
        count = len(self.threads)
        self.private: list[list[int]] = [[] for _ in range(count)]
        owned: list[list[int]] = [[] for _ in range(count)]
        common: list[int] = []
        for index, users in sorted(self.users.items()):
            owner = None if index in self.knowledge.watched else self._owner(index, users)
            if owner is None:
                common.append(index)
            elif self.merge and len(users) == 1:
                self.private[owner].append(index)
            else:
                owned[owner].append(index)
        together = {index: group for group in self.knowledge.together for index in group}
        groups: dict[Any, list[int]] = {}
        for index in common:
            groups.setdefault(together.get(index, index), []).append(index)
        self.members = [tuple(objects) for objects in [*owned, *groups.values()]]
        self.component_of = {index: number for number, objects in enumerate(self.members) for index in objects}
        self.place = {index: at for objects in self.members for at, index in enumerate(objects)}

    def _owner(self, index: int, users: set[int]) -> int | None:
        vcpus = [user for user in users if self.threads[user].role is Role.VCPU]
        if len(vcpus) == 1:
            return vcpus[0]
        others = [user for user in users if self.threads[user].role is Role.VMM]
        if len(users) == 1:
            return next(iter(users))
        if len(others) == 1 and len(self.knowledge.known[index]) <= SMALL:
            return others[0]
        return None

    def _local(self, number: int) -> LocalThread:
        thread = self.threads[number]
        observer = Observer(self.knowledge.world.kept[thread.vm], ioctl=thread.role is Role.IOCTL)
        return LocalThread(
            self.knowledge.automata[number], observer, self.knowledge, self.private[number], merge=self.merge
        )

    # -- components --------------------------------------------------------------------------------------

    def intern(self, component: int, state: tuple[int, ...]) -> int:
        """Return the number of a component's state."""
        ids = self.ids[component]
        number = ids.get(state)
        if number is None:
            number = ids[state] = len(ids)
            self.states[component].append(state)
        return number

    def initial(self) -> list[tuple[int, ...]]:
        """All initial states: more than one if a thread starts with a choice."""
        states: list[tuple[int, ...]] = [()]
        for component, members in enumerate(self.members):
            objects = tuple(self.knowledge.initial[index] for index in members)
            if component < len(self.threads):
                tails = self.locals[component].start(self.knowledge.initial)
                options = [self.intern(component, (tail.stop, *objects)) for tail in tails]
            else:
                options = [self.intern(component, objects)]
            states = [(*state, option) for state in states for option in options]
        return states

    def stop(self, thread: int, component_state: int) -> int:
        """The stop in a state of a thread's component."""
        return self.states[thread][component_state][0]

    def label(self, thread: int, component_state: int) -> At:
        """Where a thread is."""
        return self.locals[thread].label(self.stop(thread, component_state))

    def stage(self, thread: int, component_state: int) -> Stage | None:
        """The stage of a VMM thread's transaction, which lies in its own component."""
        transaction = self.threads[thread].transaction
        if transaction is None:
            return None
        state = self.object_state(thread, component_state, transaction.index)
        return Stage.OUTSIDE if state is None else state[0]

    def error(self, thread: int, component_state: int) -> BaseException | None:
        """The exception that a thread has ended with."""
        here = self.locals[thread]
        return here.automaton.nodes[here.stops[self.stop(thread, component_state)].node].error

    def memory(self, thread: int, component_state: int) -> Memory:
        """What is remembered of a thread."""
        return self.locals[thread].stops[self.stop(thread, component_state)].memory

    def concrete(self, state: tuple[int, ...]) -> list[int]:
        """The state of every object, by number, in a global state."""
        numbers = list(self.knowledge.initial)
        for component, members in enumerate(self.members):
            own = self.states[component][state[component]]
            if component < len(self.threads):
                here = self.locals[component]
                for index, number in zip(here.private, here.stops[own[0]].private, strict=True):
                    numbers[index] = number
                own = own[1:]
            for index, number in zip(members, own, strict=True):
                numbers[index] = number
        return numbers

    def object_state(self, thread: int, component_state: int, index: int) -> Any:
        """The state of an object that belongs to a thread; its first one if nobody uses it, None if it is another's."""
        state = self.states[thread][component_state]
        here = self.locals[thread]
        if index in here.slot:
            number = here.stops[state[0]].private[here.slot[index]]
        elif index not in self.component_of:
            number = self.knowledge.initial[index]
        elif self.component_of[index] == thread:
            number = state[1 + self.place[index]]
        else:
            return None
        return self.objects.states[index][number]

    # -- steps -------------------------------------------------------------------------------------------

    def kind(self, thread: int, component_state: int) -> tuple[int, ...] | None:
        """The components beside its own that the thread's next step involves; None if it has ended."""
        here = self.locals[thread]
        trap = here.trap(self.stop(thread, component_state))
        if trap is None:
            return None
        components = {self.component_of[index] for index in here.visible(trap)} - {thread}
        return tuple(sorted(components))

    def step(self, thread: int, own: int, others: tuple[int, ...], kind: tuple[int, ...]) -> tuple[Successor, ...]:
        """Perform the thread's next step. No successor: it is not enabled."""
        here = self.locals[thread]
        state = self.states[thread][own]
        stop = state[0]
        trap = here.trap(stop)
        assert trap is not None
        shared = {index: state[1 + at] for at, index in enumerate(self.members[thread])}
        for component, number in zip(kind, others, strict=True):
            skip = component < len(self.threads)
            shared.update(zip(self.members[component], self.states[component][number][skip:], strict=True))
        involved = here.involved(here.stops[stop], trap, shared)
        outcome = self.objects.apply(trap, involved)
        if outcome is None:
            return ()
        if self.objects.runs_away(trap, outcome):
            self.runaway = True
            return (Successor((own, *others), int(Did.UNBALANCED)),)
        for index, value in zip(trap.involved, outcome.states, strict=True):
            if index not in here.slot:
                shared[index] = value
                self._note(index, value)
        changed = tuple(
            self._component(component, number, shared) for component, number in zip(kind, others, strict=True)
        )
        tails = here.after(stop, outcome.result, involved, outcome.states)
        self._watch(thread)
        objects = tuple(shared[index] for index in self.members[thread])
        return tuple(Successor((self.intern(thread, (tail.stop, *objects)), *changed), tail.flags) for tail in tails)

    def _component(self, component: int, number: int, shared: dict[int, int]) -> int:
        old = self.states[component][number]
        skip = component < len(self.threads)
        new = tuple(shared[index] for index in self.members[component])
        return self.intern(component, (*old[:1], *new) if skip else new)

    def _note(self, index: int, state: int) -> None:
        """An object is in a state never seen before: operations that were silent may not be any more."""
        if not self.knowledge.reach(index, state):
            return
        overturned = False
        for here in self.locals:
            for (trap, own), silent in here.silent.items():
                if silent and index in trap.involved and not here.check_silent(trap, own):
                    self.knowledge.loud.add((trap, own))
                    overturned = True
        if overturned:
            raise Renew

    def _watch(self, thread: int) -> None:
        """A thread turns out to use an object that was thought to be another's own, or nobody's."""
        automaton = self.knowledge.automata[thread]
        fresh = automaton.nodes[self._seen_nodes[thread] :]
        self._seen_nodes[thread] = len(automaton.nodes)
        for node in fresh:
            involved = node.effect.involved if type(node.effect) is Trap else ()
            if any(thread not in self.users.get(index, ()) for index in involved):
                raise Renew
