"""KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG: what is logged, what is lost, and each errno."""

from __future__ import annotations

import errno

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.uapi import NR_MEMSLOTS
from tests.stepper import Thread, World

PAGE = 4096


def logging_world(program, pages=130, flags=1):
    world = World(program=program, pages=0)
    world.slot(0, 0, pages, flags)
    return world


def dirty(world, slot=0):
    return tuple(world.now(world.vm.get_dirty_log(slot, world.vmm)))


def clear(world, first, count, bits, slot=0):
    world.now(world.vm.clear_dirty_log(slot, first, count, bits, world.vmm))


def errno_of(call, *args):
    with pytest.raises(KvmError) as caught:
        call(*args)
    return caught.value.errno


def guest_writes(world, steps):
    """Run the guest until it has performed ``steps`` accesses, then take it out by a kick."""
    run = world.run_vcpu()
    for _ in range(steps):
        run.run_to("Memslots.guest_access").step()
    run.kill()


def test_writes_are_logged_once_fetched_and_then_forgotten():
    world = logging_world([["write", 3 * PAGE, 1], ["write", PAGE, 1], ["write", PAGE + 8, 1], ["read", 9 * PAGE]])
    guest_writes(world, 4)
    assert dirty(world) == (1, 3)
    assert dirty(world) == ()


def test_a_write_across_pages_logs_both():
    world = logging_world([["write", 2 * PAGE - 4, 1]])
    guest_writes(world, 2)
    assert dirty(world) == (1, 2)


def test_writes_to_a_readonly_slot_are_not_logged():
    world = logging_world([["write", 0, 1]], flags=3)
    assert world.run_vcpu().run().result.exit.is_write
    assert dirty(world) == ()


def test_a_deleted_slot_takes_its_bitmap_along():
    world = logging_world([["write", 0, 1]])
    guest_writes(world, 1)
    world.slot(0, 0, 0)
    world.slot(0, 0, 130, 1)
    assert dirty(world) == ()


def test_a_moved_slot_keeps_its_bitmap_while_it_is_logged():
    world = logging_world([["write", PAGE, 1]])
    guest_writes(world, 1)
    world.slot(0, 256, 130, 1)
    assert dirty(world) == (1,)


def test_logging_switched_off_frees_the_bitmap():
    world = logging_world([["write", 0, 1]])
    guest_writes(world, 1)
    world.slot(0, 0, 130, 0)
    assert errno_of(dirty, world) == errno.ENOENT
    world.slot(0, 0, 130, 1)
    assert dirty(world) == ()


def test_get_errors():
    world = logging_world([["spin"]])
    world.slot(1, 512, 1)
    assert errno_of(dirty, world, NR_MEMSLOTS) == errno.EINVAL
    assert errno_of(dirty, world, 1 << 16) == errno.EINVAL
    assert errno_of(dirty, world, 7) == errno.ENOENT
    assert errno_of(dirty, world, 1) == errno.ENOENT


def test_clear_forgets_just_the_named_pages():
    world = logging_world([["write", 0, 1], ["write", 65 * PAGE, 1], ["write", 70 * PAGE, 1]])
    guest_writes(world, 3)
    clear(world, 64, 64, [1])
    assert dirty(world) == (0, 70)


def test_clear_of_the_last_partial_word_reaches_the_end():
    world = logging_world([["write", 129 * PAGE, 1]])
    guest_writes(world, 1)
    clear(world, 128, 2, [1])
    assert dirty(world) == ()


def test_clear_ignores_bits_beyond_its_range():
    world = logging_world([["write", 70 * PAGE, 1]])
    guest_writes(world, 1)
    clear(world, 0, 64, [70])
    assert dirty(world) == (70,)


@pytest.mark.parametrize(
    ("first", "count"), [(1, 64), (63, 1), (192, 0), (64, 128), (0, 131), (0, 63), (64, 65), (128, 1)]
)
def test_clear_refuses_ranges_off_64_or_past_the_end(first, count):
    assert errno_of(clear, logging_world([["spin"]]), first, count, []) == errno.EINVAL


def test_clear_of_an_absent_or_unlogged_slot_is_enoent_after_the_check_of_first_page():
    world = World()
    assert errno_of(clear, world, 0, 1, [], 5) == errno.ENOENT
    assert errno_of(clear, world, 0, 16, [], 0) == errno.ENOENT
    assert errno_of(clear, world, 1, 16, [], 0) == errno.EINVAL


def test_a_write_between_get_and_delete_is_lost_without_a_kick_and_kept_with_one():
    program = [["write", 0, 1], ["write", PAGE, 1]]
    lossy = logging_world(program)
    run = lossy.run_vcpu().run_to("Memslots.guest_access").step()
    collected = set(dirty(lossy))
    run.run_to("Memslots.guest_access").step()  # the guest writes page 1 in the gap
    lossy.slot(0, 0, 0)
    assert collected == {0}
    run.kill()

    kept = logging_world(program)
    run = kept.run_vcpu().run_to("Memslots.guest_access").step()
    kept.finish(kept.kick(), run)
    assert 0 in dirty(kept)
    assert kept.run_vcpu().run().result.errno == errno.EINTR
    assert dirty(kept) == ()  # nothing was written since, so the deletion loses nothing


def test_a_log_that_is_cleared_by_hand_keeps_what_was_only_read():
    world = logging_world([["write", 5 * PAGE, 1]])
    world.vm.memslots.log_manually(manual=True, initially_set=False)
    guest_writes(world, 1)
    assert [dirty(world), dirty(world)] == [(5,), (5,)]
    clear(world, 0, 64, [5])
    assert dirty(world) == ()


def test_a_log_that_is_to_start_full_does():
    world = logging_world([["spin"]], flags=0)
    world.vm.memslots.log_manually(manual=True, initially_set=True)
    world.slot(0, 0, 130, 1)
    assert dirty(world) == tuple(range(130))


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "clearing"])
def test_guests_that_remember_what_is_logged_are_told_after_it_is_forgotten(reads):
    world = logging_world([["write", 5 * PAGE, 1]])
    guest_writes(world, 1)
    world.vm.flush_guests = True
    get, clear_one = world.vm.get_dirty_log(0, world.vmm), world.vm.clear_dirty_log(0, 0, 64, None, world.vmm)
    (clear_one if reads else get).close()
    Thread(get if reads else clear_one).run_to("RequestBits.make")
    assert not world.vm.memslots.dirty[0].copy()
