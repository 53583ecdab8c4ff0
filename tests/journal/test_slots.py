"""What a change of slots writes: the groups that it changed, however many slots there are."""

import time
from fnmatch import fnmatchcase

import pytest

from kickstand.core.memslots import Region
from kickstand.core.memslots.dirty_pages import CHUNK
from kickstand.journal.form import Slots, encoded
from kickstand.journal.records import Recorder
from kickstand.runtime.registry import Registry

PAGE = 4096
RAM = 0x7F00_0000_0000
MANY = 32_764


def region(slot, size=PAGE, flags=1):
    return Region(slot, flags, slot * PAGE, size, RAM)


async def machine_of(slots):
    machine = await Registry().create("m", vcpus=1)
    await machine.memory_transaction([region(slot) for slot in range(slots)], "list")
    return machine


class Disk:
    """The parts as they lie on the disk, and what the last record wrote of them."""

    def __init__(self, machine):
        self.machine, self.recorder, self.parts, self.wrote = machine, Recorder(machine), {}, {}
        self.keep()

    def keep(self):
        self.wrote = self.recorder.changed()
        for name, value in self.wrote.items():
            if value is not None:
                self.parts[name] = encoded(value)
            else:
                self.parts = {part: kept for part, kept in self.parts.items() if not fnmatchcase(part, name)}
        return {name for name in self.wrote if name.startswith(("slots/", "dirty/"))}

    def check(self):
        """What lies there is what there is."""
        live = self.machine.vm.memslots
        slots, dirty = Slots(self.parts).made
        assert dict(slots) == dict(live.slots)
        assert {slot: set(pages) for slot, pages in dirty} == {slot: set(pages) for slot, pages in live.dirty.items()}


async def test_only_what_has_changed_is_written():
    machine = await machine_of(200)
    disk = Disk(machine)
    dirty = machine.vm.memslots.dirty
    assert disk.keep() == set()
    dirty[70].update(range(1))
    assert disk.keep() == {"dirty/70/0"}
    await machine.set_user_memory_region(region(300, 3 * CHUNK * PAGE))
    assert disk.keep() == {"slots/4"}
    dirty[300].update({1, CHUNK, 2 * CHUNK})
    assert disk.keep() == {"dirty/300/0", "dirty/300/1", "dirty/300/2"}
    await machine.clear_dirty_log(300, CHUNK, 64, [0])
    assert disk.keep() == {"dirty/300/1"}
    disk.check()
    await machine.get_dirty_log(300)
    assert disk.keep() == {"dirty/300/0", "dirty/300/2"}
    assert [name for name, value in disk.wrote.items() if value is not None] == ["slots"]
    await machine.set_user_memory_region(Region(70, 0, 0, 0, 0))
    assert disk.keep() == {"slots/1", "dirty/70/0"}
    disk.check()
    await machine.memory_transaction([Region(slot, 0, 0, 0, 0) for slot in range(64)], "kick")
    assert disk.keep() == {"slots/0"}
    disk.check()


async def test_a_new_record_of_everything_leaves_nothing_of_an_older_one():
    machine = await machine_of(130)
    disk = Disk(machine)
    machine.vm.memslots.dirty[1].update({0})
    disk.keep()
    await machine.memory_transaction([Region(slot, 0, 0, 0, 0) for slot in range(129)], "list")
    disk.parts["slots"] = b"[[1]]"  # as another version wrote it
    disk.recorder = Recorder(machine)
    disk.keep()
    assert {name for name in disk.parts if name.startswith(("slots", "dirty"))} == {"slots", "slots/2"}
    disk.check()


async def test_during_a_transaction_the_slots_from_before_are_kept_with_what_is_written_since():
    machine = await machine_of(3)
    memslots = machine.vm.memslots
    memslots.dirty[0].update({0})
    disk = Disk(machine)
    transactions = machine.transactions
    transactions.settled = memslots.settled()
    await machine.set_user_memory_region(Region(0, 0, 0, 0, 0))
    await machine.set_user_memory_region(Region(1, 0, 0, 0, 0))
    await machine.set_user_memory_region(Region(1, 1, 8 * PAGE, 2 * PAGE, RAM))
    memslots.dirty[1].update({0, 1})
    assert disk.keep() == {"dirty/1/0"}
    slots, dirty = Slots(disk.parts).made
    assert [(number, slot.npages) for number, slot in slots] == [(0, 1), (1, 1), (2, 1)]
    assert {number: set(pages) for number, pages in dirty} == {0: {0}, 1: {0}, 2: set()}
    transactions.settled = None
    assert disk.keep() == {"slots/0", "dirty/0/0", "dirty/1/0"}
    disk.check()


@pytest.mark.parametrize("lost", ["slots", "slots/1", "dirty/1/0"])
async def test_a_part_that_is_lost_is_noticed(lost):
    machine = await machine_of(100)
    machine.vm.memslots.dirty[1].update({0})
    disk = Disk(machine)
    del disk.parts[lost]
    with pytest.raises((KeyError, ValueError), match="slots"):
        _ = Slots(disk.parts).made


@pytest.mark.slow
async def test_a_change_beside_tens_of_thousands_of_slots_takes_a_few_milliseconds():
    machine = await machine_of(MANY)
    disk = Disk(machine)
    took = []
    for _ in range(5):
        await machine.set_user_memory_region(Region(7, 0, 0, 0, 0))
        await machine.set_user_memory_region(region(7))
        began = time.thread_time()
        assert disk.keep() == {"slots/0"}
        took.append(time.thread_time() - began)
    assert sum(len(encoded(part)) for part in disk.wrote.values()) < 4096
    assert min(took) < 0.025
    print(f"a record beside {MANY} slots: {min(took) * 1e3:.1f} ms")  # noqa: T201
