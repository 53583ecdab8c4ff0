"""What every variant keeps, the user's own included: one suite, run over each file in the folder."""

from __future__ import annotations

import errno

import pytest

from kickstand.core.atomics import Task
from kickstand.core.memslots import Region
from kickstand.core.variants import load_variant_module, summary, variant, variants
from tests.stepper import Announced, Thread, World

EVERY = sorted(variants())
STOPPING = [name for name in EVERY if name not in ("none", "region_list", "inferred", "arm64_pause")]  # KICK drains
RAM = [["read", 0], ["write", 8, 1]]


def shared_states(world):
    """Everything that could be left behind by a thread that was torn down."""
    vm = world.vm
    held = {"srcu": tuple(vm.srcu.counts), "slots_lock": (vm.slots_lock.owner, vm.slots_lock.queue)}
    for vcpu in vm.vcpus.values():
        held[vcpu.tid] = (vcpu.mutex.owner, vcpu.mutex.queue, vcpu.mode.mode, vcpu.arch.srcu_index, vcpu.task.sleeping)
    for name, value in vars(vm.variant).items():
        if isinstance(value, Announced):
            held[name] = held_in(value.real)
    return held


def held_in(shared):
    """The part of a lock's state that says who is inside or waits."""
    fields = ("readers", "writer", "queue", "granted", "counts", "inside", "consumers", "holders", "inhibitor")
    return {field: repr(getattr(shared, field)) for field in fields if hasattr(shared, field)}


@pytest.mark.parametrize("name", EVERY)
def test_a_variant_has_a_summary_and_a_way_to_protect(name):
    assert summary(variant(name)).endswith((".", "!", "?"))
    assert variant(name).protects_by in ("kick", "list", "none")


@pytest.mark.parametrize("name", STOPPING)
@pytest.mark.parametrize("program", [[["spin"]], RAM, [["hlt"]]])
def test_kick_returns_only_after_every_vcpu_has_left_kvm_run(name, program):
    world = World(name, program, vcpus=2, irqchip=True)
    world.vcpu(1).arch.mp_state = world.vcpu(0).arch.mp_state
    runs = [world.run_vcpu(0), world.run_vcpu(1)]
    if (name, program) == ("check_not_test", [["hlt"]]):
        return assert_check_block_ate_the_kick(world, runs)
    for run in runs:
        run.run(100) if program != RAM else run.run_to("Memslots.guest_access").step()
    kick = world.kick()
    world.finish(kick, *runs)
    assert [run.result.errno for run in runs] == [errno.EINTR, errno.EINTR]
    return None


def assert_check_block_ate_the_kick(world, runs):
    """The defect of this variant: the sleeper takes the request, goes back to sleep, and KICK hangs."""
    kick = world.kick()
    for thread in (*runs, kick, *runs, kick, *runs, kick):
        thread.run()
    assert kick.at == "blocked"
    assert [run.at for run in runs] == ["blocked", "blocked"]


@pytest.mark.parametrize("name", [name for name in EVERY if name != "arm64_pause"])  # whose KVM_RUN does not end
def test_a_vcpu_runs_again_after_resume(name):
    world = World(name, RAM)
    run = world.run_vcpu().run_to("Memslots.guest_access").step()
    kick = world.kick()
    kick.run()
    if not kick.done:
        world.finish(kick, run)
    world.resume()
    again = run if not run.done else world.run_vcpu()
    for _ in range(3):
        again.run_to("Memslots.guest_access").step()


@pytest.mark.parametrize("name", EVERY)
def test_kick_without_vcpus_inside_returns_at_once(name):
    assert World(name, vcpus=3).kick().run().done


@pytest.mark.parametrize("name", EVERY)
def test_a_run_torn_down_after_any_operation_leaves_nothing_behind(name):
    clean = shared_states(World(name, RAM, killable=True))
    for steps in range(60):
        world = World(name, RAM, killable=True)
        run = world.run_vcpu()
        for _ in range(steps):
            run.step()
        run.kill()
        assert shared_states(world) == clean, f"after {steps} operations"
        assert world.kick().run().done, f"after {steps} operations"


@pytest.mark.parametrize("name", EVERY)
def test_a_kick_torn_down_after_any_operation_leaves_no_waiter_behind(name):
    for steps in range(25):
        world = World(name, RAM)
        run = world.run_vcpu().run_to("Memslots.guest_access").step()
        kick = world.kick()
        for _ in range(steps):
            if kick.done or kick.at == "blocked":
                break
            kick.step()
        if not kick.done:
            kick.kill()
            assert world.vm.variant.open_windows == 0
        world.resume()
        for _ in range(200):
            if not run.done:
                run.step()
        run = run if not run.done else world.run_vcpu()
        run.run_to("Memslots.guest_access").step()
        world.finish(world.kick(), run) if name in STOPPING else None


@pytest.mark.parametrize("name", EVERY)
def test_a_run_torn_down_while_the_vm_is_kicked_leaves_nothing_behind(name):
    world = World(name, RAM)
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    clean = shared_states(world)
    for steps in range(30):
        run = world.run_vcpu()
        for _ in range(steps):
            if not run.done and run.at != "blocked":
                run.step()
        if not run.done:
            run.kill()
        assert shared_states(world) == clean
    world.resume()
    world.run_vcpu().run_to("Memslots.guest_access")


@pytest.mark.parametrize("name", EVERY)
def test_destroying_the_vm_ends_a_running_and_a_halted_vcpu_with_eio(name):
    for program in (RAM, [["hlt"]], [["spin"]]):
        world = World(name, program, irqchip=True)
        run = world.run_vcpu()
        for _ in range(40):
            if run.at != "blocked":
                run.step()
        world.finish(Thread(world.vm.destroy()), run)
        assert run.error.errno == errno.EIO


@pytest.mark.parametrize("name", EVERY)
def test_a_signal_ends_a_run_that_waits_because_of_a_kick_or_the_run_ends_by_itself(name):
    world = World(name, RAM, killable=True)
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    run = world.run_vcpu()
    for _ in range(60):
        if not run.done and run.at != "blocked":
            run.step()
    world.now(world.vcpu().send_signal())
    assert run.run(1_000).result.errno == errno.EINTR


@pytest.mark.parametrize("name", EVERY)
def test_resume_without_a_kick_clears_nothing(name):
    assert World(name, vcpus=2).resume() == 0


@pytest.mark.parametrize("name", ["holds", "accel_blocker"])
def test_the_window_of_a_process_that_waited_for_another_is_open_when_its_kick_returns(name):
    world = World(name)
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    other = Announced(Task("other"))
    kick = Thread(world.vm.kick_all_running_vcpus(other)).run()
    assert kick.at == "blocked"
    world.resume()
    assert kick.run().result is True
    assert world.vm.variant.open_windows == 1
    assert world.now(world.vm.resume_all_kicked_vcpus(other)) == 1
    assert world.vm.variant.open_windows == 0


@pytest.mark.parametrize("name", [name for name in EVERY if name != "accel_blocker"])  # which waits before the ioctl
def test_a_run_with_immediate_exit_does_not_wait_for_the_end_of_a_kick(name):
    world = World(name, RAM)
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    world.now(world.vcpu().run_page.set_immediate_exit(True))
    assert world.run_vcpu().run(1_000).result.errno == errno.EINTR


def test_holds_are_counted_and_the_last_release_opens():
    world = World("holds", RAM)
    for _ in range(2):
        world.now(world.vm.kick_all_running_vcpus(world.vmm))
    assert world.resume() == 1
    run = world.run_vcpu().run()
    assert run.at == "blocked"
    assert world.resume() == 1
    run.run_to("Memslots.guest_access")
    assert world.resume() == 0


def test_holds_keep_other_slot_consumers_out_and_let_the_holder_in():
    world = World("holds", RAM)
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    other = world.run_slot_update(5, 64, 1, tid="device").run()
    assert other.at == "blocked"
    world.slot(6, 128, 1)
    world.resume()
    assert other.run().done


def test_what_one_process_has_deleted_another_waits_for_before_it_deletes():
    world = World("inferred", RAM, pages=2)
    world.slot(1, 8, 1)
    world.slot(0, 0, 0)
    other = world.run_slot_update(1, 8, 0, tid="device").run()
    assert other.at == "blocked"
    run = world.run_vcpu().run()
    world.slot(0, 0, 1)
    assert (other.run().at, run.run().at) == ("blocked", "blocked")  # half of what is gone is there again
    world.slot(2, 1, 1)
    assert other.run().done
    assert run.run().at == "blocked"  # now because of the other
    world.now(world.vm.variant.regions_done(Task("device")))
    run.run_to("Memslots.guest_access")


def test_a_thread_that_has_deleted_nothing_lets_nobody_go_on():
    world = World("inferred", RAM, pages=2)
    world.slot(0, 0, 0)
    run = world.run_vcpu().run()
    world.now(world.vm.variant.regions_done(Task("another", "vmm")))
    assert run.run().at == "blocked"
    world.now(world.vm.variant.regions_done(world.vmm))
    run.run_to("Memslots.guest_access")


def test_the_global_semaphore_makes_one_vm_wait_for_another():
    a = World("global_rwsem", [["spin"]])
    b = World("global_rwsem", [["spin"]], system=a.vm.system)
    b.run_vcpu().run()
    assert a.kick().run().at == "blocked"
    assert World("sticky").kick().run().done


def test_a_file_of_ten_lines_is_a_variant(tmp_path):
    path = tmp_path / "polite.py"
    path.write_text(
        '"""Mine."""\n'
        "from kickstand.core.variants.sticky import Sticky\n\n\n"
        "class Polite(Sticky):\n"
        '    """Tests after r, whatever the switch says."""\n\n'
        "    @property\n"
        "    def exit_test_site(self):\n"
        '        return "after_r"\n'
    )
    load_variant_module(path)
    assert variants()["polite"].name == "polite"
    world = World("polite", [["out", 1, 1]])
    run = world.run_vcpu().run_to("KvmRun.fill")
    kick = world.kick().run()
    assert run.run().result.ret == 0
    assert kick.run().done


def test_an_unknown_variant_is_refused_with_the_names_there_are():
    with pytest.raises(Exception, match="sticky"):
        variant("nothing-of-this-kind")


def test_region_list_applies_all_in_one_publication():
    world = World("region_list", RAM, pages=2)
    world.slot(1, 2, 2)
    regions = [Region(0, 0, 0, 0, 0), Region(1, 0, 0, 0, 0), Region(0, 0, 0, 4 * 4096, 0x7000_0000)]
    update = Thread(world.vm.set_user_memory_region_list(regions, world.vmm))
    run = world.run_vcpu()
    holes = 0
    while not update.done:
        update.step()
        for _ in range(3):
            run.step()
        slot = world.vm.memslots.find(0)
        holes += slot is None
    assert holes == 0
    assert world.vcpu().watched.counters.faults_retried
