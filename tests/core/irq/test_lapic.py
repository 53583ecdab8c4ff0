"""A local APIC by itself: what its registers hold, whom a message names, what is delivered and when."""

import pytest

from kickstand.core.arch.irq.lapic import Lapic
from kickstand.core.arch.irq.message import Delivery, Message, Shorthand, msi
from kickstand.core.arch.irq.mode import RefusedError
from kickstand.core.arch.irq.registers import BASE_ENABLE, BASE_X2APIC, Reg, Timer
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.uapi import Quirk, X2ApicApi

ENABLED = 0x1FF


@pytest.fixture
def apic():
    made = Lapic(3, boot=False)
    made.write(Reg.SPIV, ENABLED, 0)
    return made


def in_x2apic_mode(number):
    apic = Lapic(number, boot=False)
    apic.set_base(apic.base | BASE_X2APIC)
    apic.write(Reg.SPIV, ENABLED, 0)
    return apic


def test_after_reset_it_is_disabled_by_software_and_masked():
    apic = Lapic(3, boot=False)
    assert apic.read(Reg.ID, 0) == 3 << 24
    assert apic.read(Reg.LVR, 0) == 0x50014
    assert apic.read(Reg.SPIV, 0) == 0xFF
    assert apic.read(Reg.LVT0, 0) == 0x10000
    assert not apic.accept(0x40)


def test_the_boot_cpu_takes_interrupts_of_the_8259_from_the_start():
    assert Lapic(0, boot=True).takes_extint
    assert not Lapic(1, boot=False).takes_extint


def test_the_highest_vector_is_taken_first_and_blocks_its_class_until_eoi(apic):
    for vector in (0x31, 0x52, 0x55):
        assert apic.accept(vector)
    assert apic.requested == (0x55, 0x52, 0x31)
    assert apic.take() == 0x55
    assert apic.take() is None
    assert apic.write(Reg.EOI, 0, 0).ended == 0x55
    assert apic.take() == 0x52


def test_the_task_priority_holds_back_its_class_and_those_below(apic):
    apic.accept(0x52)
    apic.write(Reg.TASKPRI, 0x50, 0)
    assert apic.highest() is None
    apic.write(Reg.TASKPRI, 0x4F, 0)
    assert apic.highest() == 0x52


def test_the_end_of_a_level_triggered_interrupt_is_broadcast(apic):
    apic.accept(0x61, level_triggered=True)
    apic.take()
    effect = apic.write(Reg.EOI, 0, 0)
    assert (effect.ended, effect.level_triggered) == (0x61, True)


def test_an_eoi_with_nothing_in_service_does_nothing(apic):
    assert apic.write(Reg.EOI, 0, 0).ended is None


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (Message(1, dest=3), True),
        (Message(1, dest=2), False),
        (Message(1, dest=0xFF), True),
        (Message(1, dest=0x08, logical=True), True),
        (Message(1, dest=0x04, logical=True), False),
        (Message(1, dest=0, shorthand=Shorthand.ALL, source=5), True),
        (Message(1, dest=0, shorthand=Shorthand.OTHERS, source=5), True),
        (Message(1, dest=0, shorthand=Shorthand.OTHERS, source=3), False),
        (Message(1, dest=0, shorthand=Shorthand.SELF, source=3), True),
        (Message(1, dest=3, shorthand=Shorthand.SELF, source=5), False),
    ],
)
def test_whom_a_message_names(apic, message, named):
    apic.write(Reg.LDR, 0x0800_0000, 0)
    assert apic.is_named(message) is named


def test_in_the_cluster_model_the_upper_half_has_to_be_equal(apic):
    apic.write(Reg.DFR, 0, 0)
    apic.write(Reg.LDR, 0x2400_0000, 0)
    assert apic.read(Reg.DFR, 0) == 0x0FFF_FFFF
    assert apic.is_named(Message(1, dest=0x26, logical=True))
    assert not apic.is_named(Message(1, dest=0x16, logical=True))


def test_x2apic_derives_its_logical_id_and_knows_wide_destinations():
    apic = in_x2apic_mode(0x123)
    assert apic.read(Reg.LDR, 0) == 0x12 << 16 | 1 << 3
    assert apic.is_named(Message(1, dest=0x123))
    assert apic.is_named(Message(1, dest=0x12 << 16 | 0xFF, logical=True))
    assert apic.is_named(msi(0xFEE00000 | 0xFF << 12, 0x40))
    assert not apic.is_named(Message(1, dest=0xFF, source=1))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x80D, 0),
        (0x80E, 0),
        (0x802, 0),
        (0x828, 1),
        (0x83F, 0x100),
        (0x80F, 1 << 32),
        (0x830, 1 << 13),
        (0x830, 1 << 31),
    ],
)
def test_what_an_x2apic_msr_refuses(index, value):
    with pytest.raises(RefusedError):
        in_x2apic_mode(1).write_msr(index, value, 0)


def test_an_icr_is_written_at_once_in_x2apic_and_in_two_halves_before(apic):
    apic.write(Reg.ICR2, 0x0500_0000, 0)
    assert apic.write(Reg.ICR, 0x4000 | 0x77, 0).message == Message(0x77, 5, source=3)
    sent = in_x2apic_mode(1).write_msr(0x830, 0x105 << 32 | 0x4400, 0).message
    assert (sent.dest, sent.delivery) == (0x105, Delivery.NMI)


@pytest.mark.parametrize("value", [0x200, 1 << 52, BASE_X2APIC])
def test_a_base_that_no_apic_has_is_refused(value):
    with pytest.raises(RefusedError):
        Lapic(0, boot=True).check_base(value)


def test_x2apic_is_left_only_by_disabling():
    apic = in_x2apic_mode(0)
    with pytest.raises(RefusedError):
        apic.check_base(apic.base & ~BASE_X2APIC)
    apic.check_base(0xFEE00100)


def test_a_page_of_a_disabled_apic_reads_ones(apic):
    apic.set_base(apic.base & ~BASE_ENABLE)
    assert apic.read_page(0xFEE00020, 4, 0) == b"\xff" * 4


def test_loads_may_be_narrow_but_stores_are_whole_words(apic):
    assert apic.read_page(0xFEE00030, 1, 0) == b"\x14"
    assert apic.read_page(0xFEE00032, 2, 0) == b"\x05\x00"
    apic.write_page(0xFEE00080, b"\x10", 0)
    assert apic.read(Reg.TASKPRI, 0) == 0
    apic.write_page(0xFEE00080, b"\x10\0\0\0", 0)
    assert apic.read(Reg.TASKPRI, 0) == 0x10


# -- timer ---------------------------------------------------------------------------------------------------


def armed(apic, mode, count, divide=0xB):
    apic.write(Reg.LVTT, mode << 17 | 0x40, 0)
    apic.write(Reg.TDCR, divide, 0)
    apic.write(Reg.TMICT, count, 0)


def test_a_one_shot_timer_counts_down_and_fires_once(apic):
    armed(apic, Timer.ONE_SHOT, 1_000, divide=0b0011)  # 16 cycles a tick
    assert apic.expires == 16_000
    assert apic.read(Reg.TMCCT, 4_000) == 750
    assert not apic.timer_fired(15_999)
    assert apic.timer_fired(16_000)
    assert apic.expires is None
    assert apic.take() == 0x40


def test_a_periodic_timer_goes_on_without_drift_and_merges_what_was_missed(apic):
    armed(apic, Timer.PERIODIC, 1_000_000)
    assert apic.timer_fired(1_000_100)
    assert apic.expires == 2_000_000
    apic.timer_fired(5_500_000)
    assert apic.expires == 6_000_000
    assert apic.requested == (0x40,)


def test_a_periodic_timer_is_not_faster_than_5_khz(apic):
    armed(apic, Timer.PERIODIC, 10)
    assert apic.expires == 200_000


def test_a_masked_timer_runs_and_interrupts_nobody(apic):
    armed(apic, Timer.ONE_SHOT, 1_000)
    apic.write(Reg.LVTT, 0x10040, 0)
    assert not apic.timer_fired(1_000)
    assert apic.requested == ()


def test_a_count_of_zero_stops_the_timer(apic):
    armed(apic, Timer.ONE_SHOT, 1_000)
    apic.write(Reg.TMICT, 0, 10)
    assert apic.expires is None


def test_changing_the_divider_keeps_the_count(apic):
    armed(apic, Timer.ONE_SHOT, 1_000)
    apic.write(Reg.TDCR, 0, 400)  # two cycles a tick
    assert apic.read(Reg.TMCCT, 400) == 600
    assert apic.expires == 400 + 1_200


def test_a_deadline_counts_only_in_its_mode(apic):
    apic.set_tsc_deadline(5, 100)
    assert apic.expires is None
    apic.write(Reg.LVTT, Timer.TSC_DEADLINE << 17 | 0x40, 0)
    apic.set_tsc_deadline(5, 100)
    assert apic.timer_fired(100)
    assert apic.tsc_deadline == 0


# -- kept ----------------------------------------------------------------------------------------------------


def test_what_get_lapic_gives_set_lapic_takes(apic):
    apic.accept(0x91)
    apic.accept(0x62, level_triggered=True)
    apic.take()
    armed(apic, Timer.PERIODIC, 1_000_000)
    page = apic.registers(400_000)
    other = Lapic(3, boot=False)
    other.set_registers(page, 0)
    assert other.registers(0) == page
    assert other.expires == 600_000


def test_a_value_of_state_can_be_put_back(apic):
    armed(apic, Timer.ONE_SHOT, 77)
    before = apic.state()
    apic.reset()
    apic.load(before)
    assert apic.state() == before


def test_the_timer_counts_bus_cycles_of_the_length_that_was_set():
    apic = Lapic(0, boot=True, arch=KvmArch(apic_bus_cycle_ns=40))
    apic.write(Reg.SPIV, ENABLED, 0)
    apic.write(Reg.TDCR, 0, 0)  # two cycles a tick
    apic.write(Reg.TMICT, 1000, 0)
    assert apic.expires == 80_000
    assert apic.read(Reg.TMCCT, 8_000) == 900


def test_without_its_quirks_lint0_is_masked_and_an_unused_page_is_not_the_kernels():
    apic = Lapic(0, boot=True, arch=KvmArch(disabled_quirks=Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE))
    assert not apic.takes_extint
    assert apic.answers(apic.address)
    apic.set_base(apic.base | BASE_X2APIC)
    assert not apic.answers(apic.address)


def test_leaving_x2apic_mode_the_id_is_that_of_xapic_mode_again():
    apic = in_x2apic_mode(5)
    apic.set_base(apic.base & ~BASE_X2APIC)
    assert apic.read(Reg.ID, 0) == 5 << 24


def test_32_bit_ids_are_as_they_are_and_no_other_can_be_set():
    apic = in_x2apic_mode(5)
    assert apic.registers(0)[Reg.ID : Reg.ID + 4] == bytes([0, 0, 0, 5])
    apic.arch.enable_x2apic_api(X2ApicApi.USE_32BIT_IDS)
    page = bytearray(apic.registers(0))
    assert page[Reg.ID : Reg.ID + 4] == bytes([5, 0, 0, 0])
    apic.set_registers(bytes(page), 0)
    page[Reg.ID] = 6
    with pytest.raises(RefusedError):
        apic.set_registers(bytes(page), 0)


def test_another_id_of_eight_bits_is_ignored_in_x2apic_mode():
    apic = in_x2apic_mode(5)
    page = bytearray(apic.registers(0))
    page[Reg.ID + 3] = 9
    apic.set_registers(bytes(page), 0)
    assert apic.read(Reg.ID, 0) == 5


def test_0xff_is_one_apic_once_its_quirk_is_disabled():
    apic = in_x2apic_mode(5)
    everybody = msi(0xFEE00000 | 0xFF << 12, 0x40)
    assert apic.is_named(everybody)
    apic.arch.enable_x2apic_api(X2ApicApi.DISABLE_BROADCAST_QUIRK)
    assert not apic.is_named(everybody)


def test_a_message_names_an_id_of_32_bits_by_both_halves_of_its_address():
    assert msi(0x12345600_FEE78000, 0x40).dest == 0x78
    assert msi(0x12345600_FEE78000, 0x40, wide=True).dest == 0x12345678
