"""IOAPIC, 8259 pair, 8254 and routing by themselves."""

import pytest

from kickstand.core.arch.irq.chips import PIT, RESAMPLE, USERSPACE, Chips
from kickstand.core.arch.irq.i8254 import Pit
from kickstand.core.arch.irq.i8259 import Pic
from kickstand.core.arch.irq.ioapic import Ioapic
from kickstand.core.arch.irq.message import Message
from kickstand.core.arch.irq.routing import ChipId, MsiRoute, PinRoute, check_route, table
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.errors import KvmError
from kickstand.runtime.driver.tasks import perform_now

LEVEL = 1 << 15


def written(ioapic, pin, low, high=0):
    sent = []
    for register, value in ((2 * pin + 0x11, high), (2 * pin + 0x10, low)):
        ioapic.write(0, bytes([register]))
        sent += ioapic.write(0x10, value.to_bytes(4, "little"))
    return sent


def vectors(sent):
    return [message.vector for message in sent]


# -- IOAPIC --------------------------------------------------------------------------------------------------


def test_an_edge_is_one_message_and_a_second_while_it_is_high_none():
    ioapic = Ioapic()
    written(ioapic, 4, 0x31, 0x0200_0000)
    sent, status = ioapic.set_line(4, high=True)
    assert sent == [Message(0x31, 2, pin=4)]
    assert status == 1
    assert ioapic.set_line(4, high=True) == ([], 0)
    ioapic.set_line(4, high=False)
    assert vectors(ioapic.set_line(4, high=True)[0]) == [0x31]


def test_a_level_waits_for_its_eoi_and_comes_again_while_the_line_is_high():
    ioapic = Ioapic()
    written(ioapic, 9, LEVEL | 0x32)
    assert vectors(ioapic.set_line(9, high=True)[0]) == [0x32]
    assert ioapic.set_line(9, high=True)[0] == []
    assert vectors(ioapic.ended(9)) == [0x32]
    ioapic.set_line(9, high=False)
    assert ioapic.ended(9) == []
    assert ioapic.entries[9] == LEVEL | 0x32


def test_a_level_that_is_high_when_it_is_unmasked_is_served():
    ioapic = Ioapic()
    assert ioapic.set_line(9, high=True) == ([], -1)
    assert vectors(written(ioapic, 9, LEVEL | 0x32)) == [0x32]


def test_remote_irr_is_not_written_and_goes_with_the_edge_mode():
    ioapic = Ioapic()
    written(ioapic, 3, LEVEL | 0x30)
    ioapic.set_line(3, high=True)
    written(ioapic, 3, LEVEL | 0x10030)
    assert ioapic.entries[3] & 1 << 14
    written(ioapic, 3, 0x10030)
    assert not ioapic.entries[3] & 1 << 14


def test_only_its_two_registers_answer():
    ioapic = Ioapic()
    ioapic.write(0, b"\x01\0\0\0")
    assert ioapic.read(0x10, 4) == b"\x11\0\x17\0"
    assert ioapic.read(0x12, 2) == b"\0\0"
    ioapic.write(0, b"\x50\0\0\0")
    assert ioapic.read(0x10, 4) == b"\xff" * 4


def test_its_state_is_put_back_and_what_waits_is_sent_again():
    ioapic = Ioapic()
    written(ioapic, 9, LEVEL | 0x32)
    ioapic.set_line(9, high=True)
    ioapic.ended(9)
    other = Ioapic()
    other.restore(ioapic.saved())
    assert other.entries == ioapic.entries
    assert other.irr == 1 << 9


# -- 8259 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pic():
    made = Pic()
    for port, base, cascade in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        made.write(port, 0x11)
        for value in (base, cascade, 1):
            made.write(port + 1, value)
    return made


def test_the_slave_reaches_the_cpu_through_the_master(pic):
    pic.set_line(12, high=True)
    assert pic.output
    assert pic.acknowledge() == 0x2C
    assert [chip.isr for chip in pic.chips] == [1 << 2, 1 << 4]
    pic.write(0xA0, 0x20)
    pic.write(0x20, 0x20)
    assert [chip.isr for chip in pic.chips] == [0, 0]


def test_a_lower_input_waits_until_the_higher_one_has_ended(pic):
    pic.set_line(1, high=True)
    assert pic.acknowledge() == 0x21
    pic.set_line(4, high=True)
    assert not pic.output
    pic.write(0x20, 0x20)
    assert pic.output
    assert pic.acknowledge() == 0x24


def test_a_masked_input_is_remembered(pic):
    pic.write(0x21, 0xFF)
    assert pic.set_line(4, high=True) == -1
    assert not pic.output
    pic.write(0x21, 0)
    assert pic.output


def test_an_input_that_has_gone_is_spurious(pic):
    pic.write(0x4D0, 0x10)
    pic.set_line(4, high=True)
    pic.set_line(4, high=False)
    assert pic.acknowledge() == 0x27


def test_a_poll_acknowledges(pic):
    pic.set_line(3, high=True)
    pic.write(0x20, 0x0C)
    assert pic.read(0x20) == 0x83
    assert pic.chips[0].isr == 0


def test_rotation_makes_the_input_that_was_served_the_last(pic):
    pic.set_line(1, high=True)
    pic.acknowledge()
    pic.write(0x20, 0xA0)
    assert pic.chips[0].priority_add == 2


def test_automatic_eoi_leaves_nothing_in_service(pic):
    pic.write(0x20, 0x11)
    for value in (0x20, 4, 3):
        pic.write(0x21, value)
    pic.set_line(1, high=True)
    assert pic.acknowledge() == 0x21
    assert pic.chips[0].isr == 0


# -- 8254 ----------------------------------------------------------------------------------------------------


def programmed(mode, count, channel=0):
    pit = Pit(1)
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, 0)
    pit.write(0x40 + channel, count & 0xFF, 0)
    pit.write(0x40 + channel, count >> 8, 0)
    return pit


def test_a_rate_generator_is_due_again_and_again():
    pit = programmed(2, 1193)
    assert pit.due == 1193 * 10**9 // 1193182
    assert pit.fired(pit.due)
    assert pit.due == 2 * (1193 * 10**9 // 1193182)


def test_a_one_shot_is_due_once():
    pit = programmed(0, 11932)
    assert pit.fired(10**10)
    assert pit.due is None


def test_a_count_is_latched_and_read_in_two_bytes():
    pit = programmed(2, 0x1000, channel=2)
    pit.write(0x43, 0x80, 1_000_000)  # 1193 ticks later
    assert pit.read(0x42, 9_000_000) | pit.read(0x42, 9_000_000) << 8 == 0x1000 - 1193


def test_read_back_gives_mode_and_access():
    pit = programmed(3, 100)
    pit.write(0x43, 0xE2, 0)
    assert pit.read(0x40, 0) & 0x3F == 0x36


def test_the_speaker_port_shows_gate_and_output():
    pit = programmed(3, 0x1000, channel=2)
    pit.write(0x61, 3, 0)
    assert pit.read(0x61, 1_000) & 0x23 == 0x23


def test_a_pit_is_put_back_as_it_was():
    pit = programmed(2, 1193)
    other = Pit()
    other.restore(pit.saved(), 500)
    assert other.period == pit.period
    assert other.due == 500 + pit.period


# -- routing -------------------------------------------------------------------------------------------------


def test_a_line_is_high_while_anybody_holds_it():
    chips = Chips()
    perform_now(chips.set_gsi(4, True, USERSPACE))
    perform_now(chips.set_gsi(4, True, PIT))
    perform_now(chips.set_gsi(4, False, USERSPACE))
    assert chips.ioapic.irr == 1 << 4
    perform_now(chips.set_gsi(4, False, PIT))
    assert chips.ioapic.irr == 0


def test_a_message_route_sends_on_the_rising_edge_only():
    chips = Chips()
    perform_now(chips.set_routing(table([(30, MsiRoute(0xFEE01000, 0x41))])))
    assert perform_now(chips.set_gsi(30, True)).messages == (Message(0x41, 1),)
    assert perform_now(chips.set_gsi(30, False)).messages == ()


@pytest.mark.parametrize(
    "entries",
    [
        [(1, PinRoute(ChipId.IOAPIC, 1)), (1, PinRoute(ChipId.IOAPIC, 2))],
        [(1, MsiRoute(0, 0)), (1, PinRoute(ChipId.IOAPIC, 2))],
    ],
)
def test_routes_of_one_gsi_exclude_each_other(entries):
    with pytest.raises(KvmError):
        table(entries)


@pytest.mark.parametrize(
    ("gsi", "route", "flags"),
    [
        (4096, MsiRoute(0, 0), 0),
        (0, PinRoute(ChipId.PIC_MASTER, 8), 0),
        (0, PinRoute(ChipId.IOAPIC, 24), 0),
        (0, PinRoute(ChipId.IOAPIC, 2), 1),
        (0, MsiRoute(0, 0), 2),
    ],
)
def test_an_entry_that_names_nothing_is_refused(gsi, route, flags):
    with pytest.raises(KvmError):
        check_route(gsi, route, flags, split=False)


def test_a_value_of_state_can_be_put_back():
    chips = Chips()
    perform_now(chips.create_pit(1))
    before = chips.state()
    perform_now(chips.set_gsi(3, True))
    perform_now(chips.write_port(0x21, b"\xaa", 0))
    perform_now(chips.write_port(0x43, b"\x34", 0))
    after = chips.state()
    chips.load(before)
    assert chips.state() == before != after
    chips.load(after)
    assert chips.state() == after


# -- lines that are resampled --------------------------------------------------------------------------------


async def test_a_resampled_line_is_high_until_its_interrupt_has_ended_and_is_told_then():
    chips = Chips()
    written(chips.ioapic, 9, LEVEL | 0x32)
    await chips.resample(9, True)
    assert vectors((await chips.set_gsi(9, True, RESAMPLE)).messages) == [0x32]
    assert (await chips.ended(0x32, True)).messages == ()
    assert await chips.take_acked() == (9,)
    assert chips.lines == {}
    assert await chips.take_acked() == ()


async def test_somebody_else_who_holds_it_interrupts_again():
    chips = Chips()
    written(chips.ioapic, 9, LEVEL | 0x32)
    await chips.resample(9, True)
    await chips.set_gsi(9, True, RESAMPLE)
    await chips.set_gsi(9, True)
    assert vectors((await chips.ended(0x32, True)).messages) == [0x32]
    assert await chips.take_acked() == (9,)


async def test_the_8259_pair_tells_too_also_when_it_ends_interrupts_by_itself():
    chips = Chips()
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 3)):  # automatic EOI
        await chips.write_port(port, bytes([value]), 0)
    chips.pic.chips[0].elcr = 1 << 5
    await chips.resample(5, True)
    await chips.set_gsi(5, True, RESAMPLE)
    assert await chips.acknowledge(over=False) == 0x25
    assert await chips.take_acked() == (5,)
    assert not chips.pic.output


async def test_what_is_not_resampled_any_more_is_not_held():
    chips = Chips()
    await chips.resample(9, True)
    await chips.set_gsi(9, True, RESAMPLE)
    await chips.resample(9, False)
    assert chips.lines == {}
    await chips.ended(0, True)
    assert await chips.take_acked() == ()


# -- split ---------------------------------------------------------------------------------------------------


async def test_with_a_split_irqchip_the_level_triggered_messages_of_its_pins_are_those_whose_end_is_told():
    chips = Chips(split=True, arch=KvmArch(nr_reserved_ioapic_pins=24))
    level = MsiRoute(0xFEE01000, 0x8032)
    await chips.set_routing({3: (level,), 4: (MsiRoute(0xFEE01000, 0x33),), 24: (MsiRoute(0xFEE01000, 0x8034),)})
    assert [message.dest for message in await chips.exits_for(0x32)] == [1]
    assert await chips.exits_for(0x33) == ()
    assert await chips.exits_for(0x34) == ()
