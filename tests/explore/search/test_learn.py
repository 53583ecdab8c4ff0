"""Coroutines become automata: what counts as the same local state, on coroutines small enough to read."""

import pytest

from kickstand.core.atomics import Shared, atomic, blocked, choose
from kickstand.explore.learn.automata import Automaton, Canon
from kickstand.explore.learn.live_locals import live_locals
from kickstand.explore.learn.objects import Objects, Raised, Trap, below_zero
from kickstand.explore.learn.plain import PlainStateError


class Cell(Shared):
    __slots__ = ("n",)
    FIELDS = ("n",)

    def __init__(self, n=0):
        super().__init__()
        self.n = n

    @atomic
    async def add(self, n):
        self.n = (self.n + n) % 4
        return self.n

    @atomic
    async def wait_for(self, n):
        while self.n != n:
            await blocked(self)

    @atomic
    async def fail(self):
        raise LookupError("no")


@pytest.fixture
def objects():
    return Objects()


def automaton(make):
    return Automaton(make, Canon(), lambda coroutine: coroutine is not None)


def test_a_loop_closes_on_the_local_state_whatever_the_dead_locals_hold(objects):
    cell = objects.share(Cell())

    async def thread():
        while True:
            leftover = await cell.add(1)
            leftover = str(leftover)
            await cell.add(2)
            del leftover

    found = automaton(thread)
    node = found.root
    for answer in (1, 3, 0, 2, 3, 1):
        node = found.step(node, answer)
    assert len(found.nodes) == 3 or len(found.nodes) == 1 + 4  # the text lives on until it is deleted
    assert all(type(item.effect) is Trap for item in found.nodes)


def test_a_counter_in_a_local_is_part_of_the_state(objects):
    cell = objects.share(Cell())

    async def thread():
        for n in range(3):
            await cell.add(n)

    found = automaton(thread)
    node = found.root
    for _ in range(3):
        assert found.nodes[node].effect.args in ((0,), (1,), (2,))
        node = found.step(node, 0)
    assert found.nodes[node].effect is None
    assert len(found.nodes) == 4


def test_a_choice_branches_and_an_exception_ends_the_thread_with_its_error(objects):
    cell = objects.share(Cell())

    async def thread():
        if await choose(2):
            await cell.fail()

    found = automaton(thread)
    assert found.nodes[found.step(found.root, 0)].effect is None
    failing = found.step(found.root, 1)
    outcome = Objects.apply(objects, found.nodes[failing].effect, objects.freeze())
    assert type(outcome.result) is Raised
    ended = found.nodes[found.step(failing, outcome.result)]
    assert (ended.effect, type(ended.error)) == (None, LookupError)


def test_a_coroutine_that_does_not_do_the_same_again_is_refused(objects):
    cell, seen = objects.share(Cell()), []

    async def thread():
        seen.append(1)
        await cell.add(len(seen))
        await cell.add(0)

    found = automaton(thread)
    found.step(found.root, 1)
    with pytest.raises(PlainStateError, match="does not do the same when it is run again"):
        found.step(found.root, 2)


def test_live_locals_ends_a_local_at_its_last_use():
    def code():
        kept = 1
        gone = 2
        yield gone
        yield kept

    live = live_locals(code.__code__)
    import dis

    yields = [item.offset for item in dis.get_instructions(code) if item.opname == "YIELD_VALUE"]
    assert [sorted(name for name in live[at] if name in ("kept", "gone")) for at in yields] == [["kept"], []]


def test_operations_are_functions_of_states_and_say_whom_they_wake(objects):
    cell = objects.share(Cell())
    objects.freeze()
    add, wait = Trap(0, Cell.add, (1,)), Trap(0, Cell.wait_for, (1,))
    assert objects.apply(wait, (0,)) is None
    outcome = objects.apply(add, (0,))
    assert (outcome.result, objects.states[0][outcome.states[0]]) == (1, (1,))
    assert objects.apply(wait, outcome.states).result is None
    waits = objects.waits(wait, (0,))
    assert waits.objects == (cell.index,)
    assert not objects.wakes(add, (0,), waits)  # it forgets to call ``changed``


def test_counts_below_zero_are_seen_at_any_depth():
    assert below_zero((0, (1, (-1,))))
    assert not below_zero((0, True, None, "x", (1,)))
