"""What userspace sees when a kick arrives, row by row of the state table (the patch as posted)."""

from __future__ import annotations

import errno

import pytest

from kickstand.core.atomics import blocked
from kickstand.core.run.exits import MmioExit
from kickstand.core.run.run_page import Cause, PageWrites
from kickstand.core.shared.requests import Request
from kickstand.core.uapi import ExitReason, MpState
from tests.stepper import Thread, World

IN_GUEST = "VcpuMode.wait_interrupt"


def kicked(world, run):
    """Kick while ``run`` is where it is; both finish."""
    kick = world.kick()
    world.finish(run, kick)
    return run.result


def assert_kicked(result, exit_reason=ExitReason.UNKNOWN):
    assert (result.ret, result.errno, result.cause) == (-1, errno.EINTR, Cause.USERSPACE_KICK)
    assert result.exit_reason is exit_reason
    assert result.exit is None


def test_kick_in_guest_returns_eintr_and_leaves_exit_reason():
    world = World()
    run = world.run_vcpu().run()
    assert run.at == "blocked"
    assert world.vcpu().mode.mode.name == "IN_GUEST_MODE"
    assert_kicked(kicked(world, run))


def test_kick_between_exit_and_reentry_returns_eintr():
    world = World(program=[["read", 0]])
    run = world.run_vcpu().run_to("Memslots.guest_access").step()
    kick = world.kick()
    kick.run()  # sets the bit, sends the IPI, waits for it to be taken
    run.run_to("VcpuMode.leave").step()
    world.finish(run, kick)
    assert_kicked(run.result)


def test_kick_between_exit_and_reentry_loses_a_fresh_exit_as_posted():
    world = World(program=[["out", 0x3F8, 0x41], ["spin"]])
    run = world.run_vcpu().run_to("KvmRun.fill").step()
    kick = world.kick().run()
    assert_kicked(run.run().result, ExitReason.IO)
    assert kick.run().done
    world.resume()
    again = world.run_vcpu().run()  # the OUT is completed without anybody having seen it
    assert again.at == "blocked"
    assert world.vcpu().arch.pending is None


def test_kick_between_exit_and_reentry_keeps_the_exit_when_tested_after_r():
    world = World(program=[["out", 0x3F8, 0x41]], exit_test="after_r")
    run = world.run_vcpu().run_to("KvmRun.fill").step()
    result = kicked(world, run)
    assert (result.ret, result.exit_reason) == (0, ExitReason.IO)
    assert_kicked(kicked(world, world.run_vcpu()), ExitReason.IO)


def test_kick_past_the_last_check_takes_the_ipi_before_the_first_instruction():
    world = World(program=[["read", 0]])
    run = world.run_vcpu().run_to("VcpuMode.interrupted")
    kick = world.kick()
    world.finish(run, kick)
    assert_kicked(run.result)
    assert world.vcpu().guest.position.at == 0


def test_kick_before_entry_is_seen_among_the_requests():
    world = World()
    run = world.run_vcpu().run_to("RequestBits.pending")
    assert_kicked(kicked(world, run))
    assert world.vcpu().watched.counters.entries == 0


def test_kick_after_the_request_check_is_seen_by_the_check_after_in_guest_mode():
    world = World()
    run = world.run_vcpu().run_to("RequestBits.pending").step()
    assert_kicked(kicked(world, run))
    assert world.vcpu().watched.counters.entries == 0


def test_kick_while_halted_returns_eintr_and_stays_halted():
    world = World(program=[["hlt"]], irqchip=True)
    run = world.run_vcpu().run()
    assert world.vcpu().watched.state.value == "halted"
    assert_kicked(kicked(world, run))
    assert world.vcpu().arch.mp_state is MpState.HALTED
    world.resume()
    assert world.run_vcpu().run().at == "blocked"
    assert world.vcpu().watched.state.value == "halted"


def test_kick_between_check_block_and_sleep_is_not_lost():
    world = World(program=[["hlt"]], irqchip=True)
    run = world.run_vcpu().run_to("Task.schedule")
    assert_kicked(kicked(world, run))


def test_kick_while_waiting_for_sipi_returns_eintr():
    world = World(vcpus=2, irqchip=True)
    world.now(world.vcpu(1).set_mp_state(MpState.INIT_RECEIVED, "vmm"))
    run = world.run_vcpu(1).run()
    assert_kicked(kicked(world, run))
    assert world.vcpu(1).arch.mp_state is MpState.INIT_RECEIVED


def test_kick_of_a_parked_ap_returns_eagain_with_exit_reason_untouched():
    world = World(vcpus=2, irqchip=True)
    result = kicked(world, world.run_vcpu(1).run())
    assert (result.ret, result.errno, result.exit_reason) == (-1, errno.EAGAIN, ExitReason.UNKNOWN)
    assert world.vcpu(1).arch.mp_state is MpState.UNINITIALIZED


def test_kick_and_signal_of_a_parked_ap_returns_eintr_with_exit_intr():
    world = World(vcpus=2, irqchip=True)
    run = world.run_vcpu(1).run()
    world.now(world.vcpu(1).send_signal())
    result = kicked(world, run)
    assert (result.errno, result.exit_reason) == (errno.EINTR, ExitReason.INTR)


def test_pending_completion_finishes_in_the_closed_window_and_then_eintr():
    world = World(program=[["in", 0x60], ["spin"]])
    assert world.run_vcpu().run().result.exit_reason is ExitReason.IO
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    result = world.run_vcpu(page=PageWrites(reply=b"\x01")).run().result
    assert_kicked(result, ExitReason.IO)
    assert world.vcpu().arch.pending is None


def test_pending_completion_that_needs_another_fragment_returns_it_and_misses_the_kick():
    world = World(program=[["write", 0x2FFFC, 0x1122334455667788]], pages=1)
    first = world.run_vcpu().run().result
    assert first.exit == MmioExit(0x2FFFC, 4, is_write=True, data=bytes.fromhex("88776655"))
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    second = world.run_vcpu().run().result
    assert second.exit == MmioExit(0x30000, 4, is_write=True, data=bytes.fromhex("44332211"))
    assert_kicked(world.run_vcpu().run().result, ExitReason.MMIO)


def test_kick_comes_before_a_pending_triple_fault_which_stays():
    world = World()
    world.now(world.vcpu().requests.make(Request.TRIPLE_FAULT))
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    assert_kicked(world.run_vcpu().run().result)
    assert world.vcpu().requests.bits & Request.TRIPLE_FAULT.bit
    world.resume()
    assert world.run_vcpu().run().result.exit_reason is ExitReason.SHUTDOWN


def test_immediate_exit_returns_eintr_after_the_completion():
    world = World(program=[["out", 0x80, 1], ["spin"]])
    world.run_vcpu().run()
    result = world.run_vcpu(page=PageWrites(immediate_exit=True)).run().result
    assert (result.errno, result.cause, result.exit_reason) == (errno.EINTR, Cause.IMMEDIATE_EXIT, ExitReason.IO)
    assert world.vcpu().arch.pending is None


def test_run_after_a_kick_returns_eintr_each_time_until_resume():
    world = World()
    world.now(world.vm.kick_all_running_vcpus(world.vmm))
    for _ in range(3):
        assert_kicked(world.run_vcpu().run().result)
    assert world.vcpu().watched.counters.spins == 2
    assert world.resume() == 1
    assert world.run_vcpu().run().at == "blocked"


def test_run_that_meets_a_queued_writer_first_waits_in_down_read():
    world = World(vcpus=2, program=[["read", 0]])
    inside = world.run_vcpu(0).run_to("VcpuMode.interrupted")
    kick = world.kick().run()  # waits for the IPI to be taken
    inside.run_to("VcpuMode.leave").step()
    kick.run()  # is in the queue
    newcomer = world.run_vcpu(1).run()
    assert newcomer.at == "blocked"
    assert world.vcpu(1).watched.state.value == "waiting"
    world.finish(inside, kick, newcomer)
    assert_kicked(newcomer.result)


class StuckInFault:
    """A guest whose first access waits for a page that does not come (GUP)."""

    CACHES_TRANSLATIONS = False

    def __init__(self, vcpu):
        self.task = vcpu.task

    async def enter(self, vcpu):
        await vcpu.mode.leave()
        while True:
            await blocked(self.task.real)

    def kick(self):
        pass

    def interrupts_allowed(self):
        return True


def test_kick_of_a_vcpu_stuck_in_a_page_fault_hangs():
    world = World(guest=StuckInFault)
    run = world.run_vcpu().run()
    kick = world.kick().run()
    assert run.at == "blocked"
    assert kick.at == "blocked"


def test_thread_waiting_for_the_vcpu_mutex_is_not_waited_for():
    world = World()
    world.now(world.vcpu().mutex.lock("other"))
    run = world.run_vcpu().run()
    assert run.at == "blocked"
    assert world.kick().run().done


def test_signal_and_kick_together_count_as_the_kick():
    world = World()
    run = world.run_vcpu().run()
    world.now(world.vcpu().send_signal())
    kick = world.kick()
    kick.run_to("RequestBits.make").step()
    world.finish(run, kick)
    assert_kicked(run.result)


def test_signal_alone_returns_eintr_with_exit_intr():
    world = World()
    run = world.run_vcpu().run()
    world.now(world.vcpu().send_signal())
    result = run.run().result
    assert (result.errno, result.cause, result.exit_reason) == (errno.EINTR, Cause.SIGNAL, ExitReason.INTR)


def test_signal_while_halted_returns_eintr_with_exit_intr_and_stays_halted():
    world = World(program=[["hlt"]], irqchip=True)
    run = world.run_vcpu().run()
    world.now(world.vcpu().send_signal())
    assert run.run().result.exit_reason is ExitReason.INTR
    assert world.vcpu().arch.mp_state is MpState.HALTED


@pytest.mark.parametrize(
    "stop", ["VcpuArch.srcu_read_lock", "VcpuMode.enter", "VcpuMode.wait_interrupt", "VcpuMode.leave"]
)
def test_a_killed_run_leaves_no_read_side_no_mutex_and_no_srcu_section(stop):
    world = World(program=[["read", 0], ["spin"]])
    run = world.run_vcpu().run_to(stop) if stop != "VcpuMode.leave" else world.run_vcpu().run()
    run.kill()
    assert world.vm.variant.memory_transaction.readers == 0
    assert world.vcpu().mutex.owner is None
    assert world.vm.srcu.counts == [0, 0]
    assert world.vcpu().mode.mode.name == "OUTSIDE_GUEST_MODE"
    assert world.kick().run().done


def test_kick_with_no_vcpu_and_with_all_in_userspace_returns_at_once():
    assert World(vcpus=0).kick().run().done
    assert World(vcpus=3).kick().run().done


def test_resume_without_a_kick_changes_nothing():
    world = World()
    assert world.resume() == 0
    assert isinstance(world.run_vcpu().run(), Thread)
