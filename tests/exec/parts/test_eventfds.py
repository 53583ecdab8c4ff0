"""Which writes an ioeventfd takes, and which two of them would be at odds."""

import pytest

from kickstand.core.run.exits import HltExit, IoExit, MmioExit
from kickstand.exec.device.fds.eventfds import IoEvent

ANY = IoEvent(pio=False, address=0x1000, length=0, data=None)
WORD = IoEvent(pio=False, address=0x1000, length=4, data=None)
SEVEN = IoEvent(pio=False, address=0x1000, length=4, data=7)
PORT = IoEvent(pio=True, address=0x10, length=1, data=None)


def write(length, value, gpa=0x1000):
    return MmioExit(gpa, length, is_write=True, data=value.to_bytes(length, "little"))


@pytest.mark.parametrize(
    ("event", "exit", "taken"),
    [
        (ANY, write(8, 1), True),
        (WORD, write(8, 1), False),
        (WORD, write(4, 9), True),
        (SEVEN, write(4, 7), True),
        (SEVEN, write(4, 9), False),
        (WORD, write(4, 9, gpa=0x1004), False),
        (WORD, MmioExit(0x1000, 4, is_write=False), False),
        (PORT, IoExit("out", 1, 0x10, 1, b"\x05"), True),
        (PORT, IoExit("in", 1, 0x10), False),
        (PORT, IoExit("out", 1, 0x10, 2, b"\x05\x06"), False),
        (ANY, IoExit("out", 1, 0x1000, 1, b"\x05"), False),
        (ANY, HltExit(), False),
    ],
)
def test_a_write_is_taken_if_it_matches(event, exit, taken):
    assert event.matches(exit) is taken


def test_what_could_take_the_same_write_collides():
    assert ANY.collides(SEVEN)
    assert SEVEN.collides(WORD)
    assert not SEVEN.collides(IoEvent(pio=False, address=0x1000, length=4, data=8))
    assert not PORT.collides(ANY)
