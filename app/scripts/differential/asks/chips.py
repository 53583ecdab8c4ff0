"""The interrupt controllers in the kernel: their state, their routes, and what lines and messages do to it."""

from __future__ import annotations

from random import Random
from struct import pack

from kickstand.scripts.differential.asks.form import number
from kickstand.scripts.differential.story import Steps, op

PIC_BYTES = 16
PINS = 24


def lines(random: Random) -> Steps:
    """Pins go up and down; a controller that masks everything notes it."""
    irq = random.choice((*range(PINS), 24, 255))
    name = random.choice(("irq_line", "irq_line_status"))
    yield op(name, irq=irq, level=1)
    yield op("get_irqchip", chip_id=random.choice((0, 1, 2)))
    yield op(name, irq=irq, level=0)
    yield op("get_irqchip", chip_id=random.choice((0, 1, 2)))


def pics(random: Random) -> Steps:
    """A PIC with other registers is told as it was set."""
    chip = random.choice((0, 1))
    before = yield op("get_irqchip", chip_id=chip)
    data = bytearray(bytes.fromhex(before["hex"]))
    data[random.randrange(PIC_BYTES)] ^= 1 << random.randrange(8)
    yield op("set_irqchip", chip_id=chip, hex=data.hex())
    yield op("get_irqchip", chip_id=chip)
    yield op("set_irqchip", chip_id=chip, hex=before["hex"])


def ioapic(random: Random) -> Steps:
    """Entries of the redirection table, all of them masked, that go to nobody."""
    before = yield op("get_irqchip", chip_id=2)
    data = bytearray(bytes.fromhex(before["hex"]))
    at = 24 + 8 * random.randrange(PINS)
    entry = number(random) & ~0x1000 | 1 << 16
    data[at : at + 8] = pack("<Q", entry)
    yield op("set_irqchip", chip_id=2, hex=data.hex())
    yield op("get_irqchip", chip_id=2)
    yield op("set_irqchip", chip_id=2, hex=before["hex"])


def unknown(random: Random) -> Steps:
    yield op(random.choice(("get_irqchip", "set_irqchip")), **{"chip_id": random.choice((3, 255))} | {"hex": "00"})


def routes(random: Random) -> Steps:
    """A table that the kernel takes or refuses, then none of it is used."""
    entries = [
        {"gsi": random.choice((0, 5, 23, 100, 4095, 4096)), "irqchip": random.choice((0, 1, 2, 2, 3)),
         "pin": random.choice((0, 1, 7, 8, 23, 24)), "flags": random.choice((0, 0, 0, 1))}
        for _ in range(random.choice((0, 1, 2, 3)))
    ]  # fmt: skip
    yield op("set_gsi_routing", entries=entries)


def messages(random: Random) -> Steps:
    """To nobody, or of no kind."""
    yield op("signal_msi", address=random.choice((0, 0xFEE00000 | 99 << 12, 0xFEEFF000)), data=random.getrandbits(8))


def timer(random: Random) -> Steps:
    """There is a PIT, once."""
    yield op("create_pit", flags=random.choice((0, 0, 1, 2)))
    name = random.choice(("KVM_GET_CLOCK", "KVM_GET_PIT2"))
    if name == "KVM_GET_PIT2":
        yield op("get_pit")


def of_chips(random: Random) -> Steps:
    """One question about them."""
    yield from random.choice((lines, lines, pics, ioapic, routes, messages))(random)
