"""Which operations may change places, and which thread may go first, on objects and graphs small enough to draw."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kickstand.core.atomics import Shared, Task, atomic, blocked
from kickstand.core.shared.rwsem import RwSemaphore, Side
from kickstand.explore.learn.objects import Objects, Ref, Trap
from kickstand.explore.learn.observe import At, Did
from kickstand.explore.search import independence
from kickstand.explore.search.independence import Independence
from kickstand.explore.search.reduction import Bearing, Reduction, Stops, _against, _leads_back, _loop_breakers
from kickstand.explore.world.build import Role


class Number(Shared):
    """Counts, modulo four so that its states end."""

    __slots__ = ("value",)
    FIELDS = ("value",)

    def __init__(self):
        super().__init__()
        self.value = 0

    @atomic
    async def add(self):
        self.value = (self.value + 1) % 4

    @atomic
    async def put(self, value):
        self.value = value

    @atomic
    async def read(self):
        return self.value

    @atomic
    async def is_set(self):
        while not self.value:
            await blocked(self)

    @atomic
    async def copy(self, other):
        self.value = other.value


class Known:
    """Everything that objects can come to by the given operations, found by trying them all, or each once."""

    def __init__(self, real, traps):
        self.objects = Objects()
        for each in real:
            self.objects.share(each)
        self.known = [[state] for state in self.objects.freeze()]
        while any(self._try(trap) for trap in traps):
            pass

    def settle(self, *traps):
        for trap in traps:
            self._try(trap)

    def _try(self, trap):
        news = False
        for states in self._product(trap.involved):
            outcome = self.objects.apply_anywhere(trap, states)
            for index, state in zip(trap.involved, outcome.states if outcome else (), strict=outcome is not None):
                if state not in self.known[index]:
                    self.known[index].append(state)
                    news = True
        return news

    def _product(self, involved):
        found = [()]
        for index in involved:
            found = [(*states, state) for states in found for state in list(self.known[index])]
        return found

    def reached(self, index, state):
        return state in self.known[index]


ADD, READ, WAIT = Trap(0, Number.add), Trap(0, Number.read), Trap(0, Number.is_set)
PUT_1, PUT_2 = Trap(0, Number.put, (1,)), Trap(0, Number.put, (2,))
ELSEWHERE, COPY = Trap(1, Number.add), Trap(0, Number.copy, (Ref(1),))


def number_of(*traps, real=Number):
    return Independence(Known([real(), real()], traps))


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (ADD, ADD, False),  # 1 and then 1
        (READ, READ, False),
        (ADD, READ, True),  # what is read differs
        (PUT_1, PUT_2, True),  # the last one wins
        (PUT_1, PUT_1, False),
        (PUT_1, ADD, True),
        (ADD, ELSEWHERE, False),  # no object in common
        (COPY, ELSEWHERE, True),  # reads what the other changes
        (COPY, COPY, False),
        (WAIT, READ, False),
    ],
)
def test_operations_conflict_if_their_order_can_be_told(one, other, conflict):
    known = number_of(ADD, ELSEWHERE, PUT_1, PUT_2, COPY)
    assert known.conflict(one, other, helps=False) is conflict
    assert known.conflict(other, one, helps=False) is conflict


def test_whoever_enables_another_goes_first_only_where_helping_is_no_matter():
    known = number_of(PUT_1, Trap(0, Number.put, (0,)))
    assert known.conflict(PUT_1, WAIT, helps=False)
    assert not known.conflict(PUT_1, WAIT, helps=True)
    assert known.conflict(WAIT, PUT_1, helps=True)  # it waits for the other, so it cannot go before it
    zero = Trap(0, Number.put, (0,))
    assert known.conflict(zero, WAIT, helps=True)  # takes away what the other waits for


def test_readers_conflict_with_a_writer_and_an_up_read_goes_before_anybodys_wait():
    queue = [Trap(0, RwSemaphore.read_or_queue, ("a",)), Trap(0, RwSemaphore.write_or_queue, ("b",))]
    wait, leave = Trap(0, RwSemaphore.wait_turn, ("b", Side.WRITE)), Trap(0, RwSemaphore.up_read)
    known = Known([RwSemaphore()], [])
    known.settle(*queue)
    found = Independence(known)
    assert found.conflict(*queue, helps=True)
    assert not found.conflict(leave, wait, helps=True)


def test_more_combinations_than_are_looked_at_count_as_a_conflict(monkeypatch):
    monkeypatch.setattr(independence, "MAX_COMBINATIONS", 3)
    assert number_of(ADD).conflict(READ, READ, helps=False)


# -- graphs of stops ---------------------------------------------------------------------------------------


def leads_back(targets, stop):
    return _leads_back(targets, set(range(len(targets))), stop)


@given(
    st.integers(1, 7).flatmap(lambda size: st.lists(st.sets(st.integers(0, size - 1)), min_size=size, max_size=size))
)
def test_without_its_breakers_a_graph_has_no_loop(targets):
    breakers = _loop_breakers(targets, list(range(len(targets))))
    rest = [set() if stop in breakers else those - breakers for stop, those in enumerate(targets)]
    assert not any(leads_back(rest, stop) for stop in range(len(rest)))
    assert all(leads_back(targets, stop) for stop in breakers)  # none is sacrificed that is on no loop


def test_of_a_loop_the_last_in_the_order_is_the_breaker():
    assert _loop_breakers([{1}, {2}, {0}], [2, 0, 1]) == {1}
    assert _loop_breakers([{1}, {2}, set()], [0, 1, 2]) == set()


def test_a_stop_sees_all_that_may_come_and_no_more():
    stops = Stops([ADD, READ, PUT_1, None], [0, int(Bearing.KICK), 0, 0], [{1}, {3}, {2}, set()], [False] * 4)
    stops.look_ahead()
    bits = {trap: 1 << number for number, trap in enumerate(stops.names)}
    kick = int(Bearing.KICK) << len(stops.names)
    assert stops.later == [bits[ADD] | bits[READ] | kick, bits[READ] | kick, bits[PUT_1], 0]


def test_what_counts_in_a_window_is_against_whoever_opens_one():
    assert _against(int(Bearing.LOOKS)) == Bearing.WINDOW
    assert _against(int(Bearing.INSIDE | Bearing.READS)) == Bearing.KICK | Bearing.SLOTS
    assert _against(0) == 0


# -- who is free -------------------------------------------------------------------------------------------


class Line:
    """A thread that performs its traps one after the other, and again from the start if it ``loops``."""

    def __init__(self, traps, *, loops=False, noted=None):
        self.stops = [(number,) for number in range(len(traps) + (not loops))]
        self.traps = [*traps, *([] if loops else [None])]
        self.targets = {n: {(n + 1) % len(self.stops)} for n in range(len(traps))}
        self.noted = noted or {}
        self.facts = 0

    def trap(self, stop):
        return self.traps[stop]

    def label(self, stop):
        return At(0)


def reduction(*lines, roles=None):
    real = [Number(), Number(), Task("t")]
    traps = [trap for line in lines for trap in line.traps if trap is not None]
    roles = roles or [Role.VCPU] * len(lines)
    return Reduction(
        SimpleNamespace(
            knowledge=Known(real, traps),
            locals=lines,
            threads=[SimpleNamespace(role=role, vm="v") for role in roles],
            states=[[(stop,) for (stop,) in line.stops] for line in lines],
        )
    )


def free(found, *stops):
    import numpy as np

    at = [np.array([stop]) for stop in stops]
    return [thread for thread in found.threads if len(found.free(at, thread, np.array([0])))]


def test_threads_that_share_nothing_are_both_free():
    assert free(reduction(Line([ADD, ADD]), Line([ELSEWHERE])), 0, 0) == [0, 1]


def test_a_thread_is_not_free_while_another_may_still_do_what_it_conflicts_with():
    found = reduction(Line([PUT_1]), Line([ELSEWHERE, PUT_2]))
    assert free(found, 0, 0) == [1]  # the second is far from its PUT, and will come to it
    assert free(found, 0, 1) == []
    assert free(found, 0, 2) == [0]  # it has ended


def test_on_every_loop_somebody_is_never_free():
    found = reduction(Line([ADD, ADD, ADD], loops=True), Line([ELSEWHERE]))
    assert sum(0 not in free(found, stop, 0) for stop in range(3)) == 1


def test_an_access_waits_for_whoever_opens_or_closes_a_window():
    looks, turns = Line([ADD], noted={0: Did.ACCESS}), Line([Trap(2, Task.send_signal)])
    assert free(reduction(looks, turns), 0, 0) == [0, 1]  # a signal is no window
    inside = Line([ADD], noted={0: Did.EINTR})
    assert free(reduction(inside, turns), 0, 0) == []  # but a reason for EINTR


def test_what_was_concluded_holds_after_learning_more_only_if_nobody_lost_freedom():
    before = reduction(Line([PUT_1]), Line([ELSEWHERE]))
    same, worse = reduction(Line([PUT_1]), Line([ELSEWHERE])), reduction(Line([PUT_1]), Line([PUT_2]))
    longer = reduction(Line([PUT_1]), Line([ELSEWHERE, ELSEWHERE]))
    assert before.holds_in(same)
    assert not before.holds_in(worse)
    assert before.knows_less(longer)
    assert not before.knows_less(same)
