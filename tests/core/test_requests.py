"""Request bits, their flags, and who is woken, interrupted or waited for."""

from __future__ import annotations

import pytest

from kickstand.core.arch.irq.message import Delivery, Message
from kickstand.core.kvm_main import make_all_cpus_request
from kickstand.core.shared.requests import Mode, Request, request_names
from kickstand.core.uapi import MpState
from kickstand.guests.script import ScriptGuest
from tests.stepper import Thread, World


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.TLB_FLUSH, 0x300),
        (Request.VM_DEAD, 0x301),
        (Request.UNBLOCK, 0x002),
        (Request.OUTSIDE_GUEST_MODE, 0x700),
        (Request.USERSPACE_KICK, 0x228),
        (Request.MCLOCK_INPROGRESS, 22 + 0x300),
        (Request.EVENT, 14),
        (Request.TRIPLE_FAULT, 10),
        (Request.MMU_FREE_OBSOLETE_ROOTS, 39 + 0x300),
    ],
)
def test_requests_have_the_kernels_values(request_, value):
    assert int(request_) == value


def test_every_request_fits_in_the_word_and_has_a_bit_of_its_own():
    bits = [request.nr for request in Request if request is not Request.OUTSIDE_GUEST_MODE]
    assert len(set(bits)) == len(bits)
    assert max(bits) < 64


def test_names_list_the_set_bits_only():
    assert request_names(Request.USERSPACE_KICK.bit | Request.EVENT.bit) == ["KVM_REQ_EVENT", "KVM_REQ_USERSPACE_KICK"]


def test_a_no_action_request_leaves_no_bit():
    world = World()
    world.now(make_all_cpus_request([world.vcpu()], Request.OUTSIDE_GUEST_MODE))
    assert world.vcpu().requests.bits == 0


def test_a_no_wakeup_request_leaves_a_halted_vcpu_asleep():
    world = World(program=[["hlt"]], irqchip=True)
    run = world.run_vcpu().run()
    world.now(make_all_cpus_request([world.vcpu()], Request.TLB_FLUSH))
    assert run.run().at == "blocked"
    assert world.vcpu().task.sleeping


def test_wait_means_the_ipi_was_taken_not_that_kvm_run_was_left():
    world = World()
    run = world.run_vcpu().run()
    request = Thread(make_all_cpus_request([world.vcpu()], Request.USERSPACE_KICK)).run()
    assert request.at == "blocked"
    run.run_to("VcpuMode.leave").step()
    assert request.run().done
    assert not run.done


def test_a_woken_sleeper_is_not_waited_for_even_with_wait():
    world = World(program=[["hlt"]], irqchip=True)
    run = world.run_vcpu().run()
    assert Thread(make_all_cpus_request([world.vcpu()], Request.USERSPACE_KICK)).run().done
    assert run.at == "blocked"
    assert world.vcpu().arch.mp_state is MpState.HALTED


def test_a_second_kick_of_an_exiting_vcpu_sends_no_second_ipi_without_wait():
    world = World()
    world.run_vcpu().run()
    world.now(world.vcpu().kick())
    assert world.vcpu().mode.mode is Mode.EXITING_GUEST_MODE
    ipis = []
    world.vcpu().guest.kick = lambda: ipis.append(1)
    world.now(world.vcpu().kick())
    assert not ipis


def test_an_ipi_outside_guest_mode_is_taken_at_once():
    world = World()
    world.now(world.vcpu().mode.send_ipi())
    assert not world.vcpu().mode.ipi


def test_an_interrupt_wakes_a_halted_vcpu_and_makes_it_runnable():
    world = World(program=[["hlt"], ["spin"]], irqchip=True)
    run = world.run_vcpu().run()
    world.now(world.vm.irq_line(4, 1))
    run.run()
    assert world.vcpu().arch.mp_state is MpState.RUNNABLE
    assert world.vcpu().watched.state.value == "guest"


@pytest.mark.parametrize("serves_it", [False, True], ids=["as a script", "as x86 code"])
def test_an_interrupt_is_handed_over_once_and_in_service_until_its_handler_says_so(serves_it, monkeypatch):
    world = World(program=[["hlt"], ["spin"]], irqchip=True)
    vcpu, taken = world.vcpu(), []
    monkeypatch.setattr(ScriptGuest, "handles_interrupts", serves_it)
    vcpu.guest.interrupt = taken.append
    run = world.run_vcpu().run()
    world.now(vcpu.arch.accept(Message(0x40, dest=0)))
    world.now(vcpu.kick())
    run.run()
    world.now(vcpu.kick())
    run.run()
    assert taken == [0x40]
    assert vcpu.apic.irr == 0
    assert bool(vcpu.apic.isr) == serves_it


def test_a_guest_that_spins_is_interrupted_by_a_kick():
    world = World(irqchip=True)
    vcpu, taken = world.vcpu(), []
    vcpu.guest.interrupt = taken.append
    run = world.run_vcpu().run()
    world.now(vcpu.arch.accept(Message(0x40, dest=0)))
    world.now(vcpu.kick())
    run.run()
    assert taken == [0x40]


def test_an_init_that_is_taken_away_again_resets_nobody():
    world = World(vcpus=2, irqchip=True)
    away = Message(0, dest=1, delivery=Delivery.INIT, level_triggered=True, assert_level=False)
    world.now(world.vcpu(1).arch.accept(away))
    assert world.now(world.vcpu(1).arch.events())[0] is False


def test_an_interrupt_that_the_guest_would_not_take_leaves_it_asleep():
    world = World(program=[["hlt"], ["spin"]], irqchip=True)
    world.vcpu().guest.interrupts_allowed = lambda: False
    run = world.run_vcpu().run()
    world.now(world.vm.irq_line(4, 1))
    run.run()
    assert world.vcpu().arch.mp_state is MpState.HALTED
    assert world.vcpu().task.sleeping


def test_who_finds_an_interrupt_when_about_to_sleep_is_awake_to_the_next_kick():
    world = World(program=[["hlt"], ["spin"]], irqchip=True)
    run = world.run_vcpu().run_to("Task.set_interruptible")
    world.now(world.vm.irq_line(4, 1))
    run.run()
    assert world.vcpu().watched.state.value == "guest"
    kick = world.kick()
    world.finish(kick, run)
    assert run.result.errno == 4


def test_an_nmi_wakes_a_halted_vcpu():
    world = World(program=[["hlt"], ["spin"]], irqchip=True)
    run = world.run_vcpu().run()
    world.now(world.vcpu().arch.queue_nmi())
    world.now(world.vcpu().kick())
    assert run.run().at == "blocked"
    assert world.vcpu().watched.state.value == "guest"


def test_init_then_sipi_starts_a_parked_ap_after_one_eagain():
    world = World(vcpus=2, irqchip=True)
    run = world.run_vcpu(1).run()
    world.now(world.vcpu(1).arch.accept(Message(0, dest=1, delivery=Delivery.INIT)))
    world.now(world.vcpu(1).kick())
    assert run.run().result.errno == 11
    assert world.vcpu(1).arch.mp_state is MpState.INIT_RECEIVED
    run = world.run_vcpu(1).run()
    world.now(world.vcpu(1).arch.accept(Message(0x10, dest=1, delivery=Delivery.STARTUP)))
    world.now(world.vcpu(1).kick())
    run.run()
    assert world.vcpu(1).watched.state.value == "guest"


def test_watchers_are_told_of_a_request_and_of_every_change_of_the_mode():
    world = World()
    told = []
    world.vm.trace = lambda event, vcpu, fields: told.append((event, vcpu, *fields.values()))
    run = world.run_vcpu().run()
    Thread(make_all_cpus_request([world.vcpu()], Request.USERSPACE_KICK)).run()
    run.run_to("VcpuMode.leave").step()
    assert [event for event in told if event[0] in ("kvm_mode", "kvm_make_request", "kvm_kick")] == [
        ("kvm_mode", 0, "IN_GUEST_MODE"),
        ("kvm_make_request", 0, "KVM_REQ_USERSPACE_KICK"),
        ("kvm_mode", 0, "EXITING_GUEST_MODE"),
        ("kvm_kick", 0, True),
        ("kvm_mode", 0, "OUTSIDE_GUEST_MODE"),
    ]
