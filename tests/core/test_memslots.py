"""KVM_SET_USER_MEMORY_REGION: every check, its place in the order, and what each class of change does."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import UPDATE_IN_PROGRESS, USER_SPACE_END, Change, Memslots, Plan, Region, SlotTable, plan
from kickstand.core.uapi import NR_MEMSLOTS, MemFlag
from kickstand.runtime.driver.tasks import perform_now
from tests.stepper import World

PAGE = 4096
GOOD = {"slot": 1, "flags": 0, "guest_phys_addr": 0x10000, "memory_size": 4 * PAGE, "userspace_addr": 0x7000_0000}


def slots(*regions):
    """The set that these calls create, in order."""
    made = {}
    for region in regions:
        made[region.slot] = plan(made, region).new
    return made


def region(**changes):
    return Region(**GOOD | changes)


def refused(existing, **changes):
    with pytest.raises(KvmError) as caught:
        plan(existing, region(**changes))
    return caught.value.errno, caught.value.field


# One row a check, in the kernel's order. Each also breaks every *later* rule that it can, so that a check
# that came too late would answer with the wrong field.
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slot": NR_MEMSLOTS, "flags": 0xF0, "memory_size": 1}, "slot"),
        ({"flags": 4, "memory_size": PAGE + 1, "guest_phys_addr": 1}, "flags"),
        ({"memory_size": PAGE + 1, "guest_phys_addr": 1, "userspace_addr": 1}, "memory_size"),
        ({"guest_phys_addr": 1, "userspace_addr": 1}, "guest_phys_addr"),
        ({"userspace_addr": 1, "slot": 1 << 16}, "userspace_addr"),
        ({"userspace_addr": USER_SPACE_END, "slot": 1 << 16}, "userspace_addr"),
        ({"slot": 1 << 16, "guest_phys_addr": (1 << 64) - PAGE}, "slot"),
        ({"guest_phys_addr": (1 << 64) - PAGE}, "guest_phys_addr"),
        ({"memory_size": PAGE << 31, "userspace_addr": 0}, "memory_size"),
        ({"slot": 2, "memory_size": 0}, "slot"),
        ({"userspace_addr": 0x7000_1000, "memory_size": PAGE, "flags": 2}, "userspace_addr"),
        ({"memory_size": PAGE, "flags": 2}, "memory_size"),
        ({"flags": 2, "guest_phys_addr": 0x20000}, "flags"),
        ({"slot": 2, "guest_phys_addr": 1 << 52, "userspace_addr": 0}, "guest_phys_addr"),
    ],
)
def test_each_check_is_einval_and_names_its_field(changes, field):
    assert refused(slots(region()), **changes) == (errno.EINVAL, field)


@pytest.mark.parametrize("field", ["guest_phys_addr", "userspace_addr"])
def test_alignment_is_checked_for_a_deletion_too(field):
    assert refused(slots(region()), memory_size=0, **{field: 1}) == (errno.EINVAL, field)


@pytest.mark.parametrize("gpa", [0x10000, 0x13000, 0xF000])
def test_overlap_of_another_slot_is_eexist(gpa):
    assert refused(slots(region()), slot=2, guest_phys_addr=gpa)[0] == errno.EEXIST


def test_a_move_onto_another_slot_is_eexist():
    existing = slots(region(), region(slot=2, guest_phys_addr=0x20000))
    assert refused(existing, slot=2)[0] == errno.EEXIST


def test_neighbours_sparse_numbers_shared_backing_and_unmapped_host_memory_are_fine():
    existing = slots(
        region(), region(slot=NR_MEMSLOTS - 1, guest_phys_addr=0x14000), region(slot=7, guest_phys_addr=0xC000)
    )
    assert plan(existing, region(slot=9, guest_phys_addr=0, userspace_addr=0)).change is Change.CREATE


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({}, Change.NOTHING),
        ({"memory_size": 0}, Change.DELETE),
        ({"memory_size": 0, "flags": 1, "userspace_addr": 0}, Change.DELETE),
        ({"flags": 1}, Change.FLAGS_ONLY),
        ({"guest_phys_addr": 0x11000}, Change.MOVE),
        ({"guest_phys_addr": 0x20000, "flags": 1}, Change.MOVE),
        ({"slot": 2, "guest_phys_addr": 0x20000}, Change.CREATE),
    ],
)
def test_the_class_of_a_change(changes, change):
    assert plan(slots(region()), region(**changes)).change is change


def test_a_deletion_shows_an_invalid_slot_before_it_shows_a_hole():
    world = World(program=[["read", 0]])
    deleting = world.run_slot_update(0, 0, 0).run_to("Srcu.flip")
    slot = world.vm.memslots.find(0)
    assert slot.invalid
    assert world.vm.memslots.generation & UPDATE_IN_PROGRESS
    vcpu = world.run_vcpu().run_to("Memslots.guest_access").step()
    vcpu.run_to("Memslots.guest_access")  # the page fault is retried, nothing leaves KVM_RUN
    assert world.vcpu().watched.counters.faults_retried == 1
    deleting.run()
    assert vcpu.run().result.exit_reason.name == "MMIO"
    assert not world.vm.memslots.generation & UPDATE_IN_PROGRESS


def test_generations_count_one_swap_for_create_and_two_for_delete_and_move():
    world = World(pages=0)
    counted = []
    for call in [(0, 0, 4), (0, 0, 4, 1), (0, 8, 4, 1), (0, 0, 0)]:
        before = world.vm.memslots.generation
        world.slot(*call)
        counted.append(world.vm.memslots.generation - before)
    assert counted == [1, 1, 2, 2]


def test_a_slot_update_waits_for_a_vcpu_in_emulation_but_not_for_a_guest():
    world = World(vcpus=2)
    in_guest = world.run_vcpu(0).run()
    assert in_guest.at == "blocked"
    emulating = world.run_vcpu(1).run_to("RequestBits.pending")
    update = world.run_slot_update(0, 0, 0).run()
    assert update.at == "blocked"
    emulating.run()
    assert update.run().done


def test_two_updates_are_serialised_by_slots_lock():
    world = World()
    first = world.run_slot_update(0, 0, 0, tid="a").run_to("Srcu.flip")
    second = world.run_slot_update(3, 32, 4, tid="b").run()
    assert second.at == "blocked"
    first.run()
    assert second.run().done


def test_a_list_is_all_or_nothing():
    world = World()
    before = world.vm.memslots.state()
    regions = [Region(0, 0, 0, 0, 0), Region(1, 0, 0, 4 * PAGE, 0), Region(2, 0, PAGE, PAGE, 0)]
    with pytest.raises(KvmError, match="overlaps"):
        world.now(world.vm.set_user_memory_region_list(regions, world.vmm))
    assert world.vm.memslots.state() == before
    world.now(world.vm.set_user_memory_region_list(regions[:2], world.vmm))
    assert sorted(world.vm.memslots.slots) == [1]


def test_lookup_finds_the_slot_of_each_page_and_nothing_between():
    memslots = Memslots()
    for made in slots(region(), region(slot=5, guest_phys_addr=0x20000, memory_size=PAGE)).values():
        perform_now(memslots.publish(((made.id, made),)))
    found = {gfn: getattr(memslots.find(gfn), "id", None) for gfn in (0xF, 0x10, 0x13, 0x14, 0x1F, 0x20, 0x21)}
    assert found == {0xF: None, 0x10: 1, 0x13: 1, 0x14: None, 0x1F: None, 0x20: 5, 0x21: None}


def test_flags_have_the_kernels_values():
    assert (int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)) == (1, 2)


def overlapping(slots, wanted):
    """By looking at every slot."""
    first, end = wanted.guest_phys_addr >> 12, wanted.guest_phys_addr + wanted.memory_size >> 12
    return [s for s in slots.values() if s.id != wanted.slot and s.base_gfn < end and first < s.end_gfn]


def test_a_plan_needs_no_more_than_the_slots_that_a_call_concerns():
    choice = random.Random(1)
    table = SlotTable()
    outcomes = set()
    for _ in range(3_000):
        size = choice.choice((0, 1, 1, 2, 5, 40)) << 12
        wanted = region(
            slot=choice.randrange(40), memory_size=size, guest_phys_addr=choice.randrange(120) << 12, userspace_addr=0
        )
        answers = []
        for known in (table.slots, table.concerned(wanted)):
            try:
                answers.append(plan(known, wanted))
            except KvmError as error:
                answers.append((error.errno, error.field))
        assert answers[0] == answers[1]
        known = table.concerned(wanted)
        assert bool(overlapping(table.slots, wanted)) == bool(known.keys() - {wanted.slot})
        if isinstance(answers[0], Plan):
            table.change(((wanted.slot, answers[0].new),))
            outcomes.add(answers[0].change)
        gfn = choice.randrange(170)
        holder = next((s for s in table.slots.values() if s.base_gfn <= gfn < s.end_gfn), None)
        assert table.find(gfn) == holder
    assert outcomes == set(Change) - {Change.FLAGS_ONLY}


def test_another_thread_finds_a_slot_before_or_after_a_change_and_never_half_of_it():
    table = SlotTable(plan({}, region(slot=n, guest_phys_addr=n << 13, memory_size=1 << 12)).new for n in range(64))
    wrong, done = [], threading.Event()
    stays = table.slots[40]

    def look():
        while not done.is_set():
            if table.find(stays.base_gfn) != stays:
                wrong.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    others = [slot for slot in table.slots.values() if slot.id < 32]
    for _ in range(300):
        table.change([(slot.id, None) for slot in others])
        table.change([(slot.id, slot) for slot in others])
    done.set()
    thread.join()
    assert not wrong
