"""Lost wake-ups: what the graph of states cannot see, and the server hangs of."""

import pytest

from kickstand.core.atomics import Mutex, Task, atomic
from kickstand.core.shared.rwsem import RwSemaphore, Srcu
from kickstand.core.variants.holds import Window
from kickstand.explore.matrix import explore, replay_token

pytestmark = pytest.mark.slow
DOOR = '''"""A gate as docs/variants.md tells."""

from kickstand.core.atomics import Shared, atomic, blocked
from kickstand.core.variants.sticky import Sticky


class Door(Shared):
    __slots__ = ("closed",)
    FIELDS = ("closed",)

    def __init__(self):
        super().__init__()
        self.closed = False

    @atomic
    async def close(self):
        self.closed = True

    @atomic
    async def open(self):
        self.closed = False{wake}

    @atomic
    async def ring(self):
        self.changed()

    @atomic
    async def enter(self):
        while self.closed:
            await blocked(self)


class Gated(Sticky):
    """Sticky with a door in front: nobody spins."""

    def __init__(self, vm):
        super().__init__(vm)
        self.door = vm.share(Door())

    async def kick(self, task):
        await self.door.close()
        return await super().kick(task)

    async def resume(self, task):
        cleared = await super().resume(task)
        await self.door.open(){later}
        return cleared

    async def run_begin(self, vcpu):
        await self.door.enter()
        return await super().run_begin(vcpu)
'''
AT_ONCE, LATER = "\n        self.changed()", "\n        await self.door.ring()"


@pytest.fixture
def door(tmp_path):
    def explored(wake, later, *properties):
        file = tmp_path / "gated.py"
        file.write_text(DOOR.format(wake=wake, later=later))
        return explore("merge", "gated", "careless", properties=properties, variant_module=str(file))

    return explored


def test_a_door_that_opens_and_wakes_nobody_is_told_unasked_and_its_token_replays(door):
    deadlock, lost = door("", "", "deadlock")
    assert (deadlock.property, deadlock.verdict) == ("deadlock", "holds")
    assert (lost.property, lost.verdict) == ("lost_wakeup", "violated")
    assert "door.open" in lost.counterexample.text().splitlines()[-3]
    replay_token(lost.counterexample.token)


@pytest.mark.parametrize(("wake", "later"), [(AT_ONCE, ""), ("", LATER)], ids=["at once", "by a later operation"])
def test_a_door_that_wakes_is_not_accused(door, wake, later):
    (found,) = door(wake, later, "lost_wakeup")
    assert found.verdict == "holds"


@atomic
async def wakes_nobody(task):
    woke, task.sleeping = task.sleeping, False
    return woke


@atomic
async def lets_nobody_in(window, process):
    window.holders = window.holders[1:]
    return 1


def nobody(*_):
    """Wake nobody."""


SILENCED = {
    "wake_up_process": (Task, "wake_up", wakes_nobody, "sticky", 1),
    "a semaphore's head": (RwSemaphore, "changed_for", nobody, "sticky", 1),
    "the last SRCU reader": (Srcu, "changed", nobody, "srcu", 1),
    "a mutex handed over": (Mutex, "changed_for", nobody, "sticky", 2),
    "the release of a hold": (Window, "release", lets_nobody_in, "holds", 1),
}


@pytest.mark.parametrize("what", SILENCED)
def test_each_silenced_wakeup_is_found(monkeypatch, what):
    owner, method, mutant, variant, vmms = SILENCED[what]
    monkeypatch.setattr(owner, method, mutant)
    found = explore("merge", variant, "careless", 1, vmms, properties=["lost_wakeup"])
    assert [item.verdict for item in found] == ["violated"]
