"""The 8254 interval timer: three counters of 1.193182 MHz, of which the first interrupts and the third beeps.

Pure: time is an argument (ns). ``due`` is when the first counter's output rises next.
"""

from __future__ import annotations

import struct
from typing import Any

FREQUENCY = 1_193_182
SECOND = 1_000_000_000
CONTROL, SPEAKER = 0x43, 0x61
PORTS = range(0x40, 0x44)
LSB, MSB, WORD0, WORD1 = 1, 2, 3, 4  # what is read or written next of a counter
PERIODIC_MODES, ONE_SHOT_MODES = (2, 3), (0, 1, 4)
MIN_PERIOD_NS = 200_000
NO_MODE = 0xFF
SPEAKER_DUMMY = 1  # KVM_PIT_SPEAKER_DUMMY
CHANNEL = struct.Struct("<IH10Bq")  # ``kvm_pit_channel_state``
FLAGS = struct.Struct("<I36x")
FIELDS = (
    "count", "latched_count", "count_latched", "status_latched", "status", "read_state", "write_state", "write_latch",
    "rw_mode", "mode", "bcd", "gate", "loaded",
)  # fmt: skip


class Channel:
    """One counter (``struct kvm_kpit_channel_state``); ``loaded`` is when it began to count, in ns."""

    def __init__(self, number: int) -> None:
        self.count = 0x10000
        self.latched_count = 0
        self.count_latched = self.status_latched = self.status = 0
        self.read_state = self.write_state = self.write_latch = self.rw_mode = 0
        self.mode = NO_MODE
        self.bcd = 0
        self.gate = int(number != 2)
        self.loaded = 0

    def state(self) -> tuple[int, ...]:
        """All of it as one hashable value, in the order of the ABI's structure."""
        return tuple(getattr(self, field) for field in FIELDS)

    def load(self, state: tuple[int, ...]) -> None:
        """Put a value of ``state`` back."""
        for field, value in zip(FIELDS, state, strict=True):
            setattr(self, field, value)

    def ticks(self, elapsed: int) -> int:
        """Ticks in so many ns."""
        return elapsed * FREQUENCY // SECOND

    def value(self, elapsed: int) -> int:
        """What the counter shows so many ns after it was loaded."""
        ticks = self.ticks(elapsed)
        if self.mode in (0, 1, 4, 5):
            return self.count - ticks & 0xFFFF
        if self.mode == 3:
            return self.count - 2 * ticks % self.count
        return self.count - ticks % self.count

    def output(self, elapsed: int) -> bool:
        """Its output pin."""
        ticks = self.ticks(elapsed)
        if self.mode == 1:
            return ticks < self.count
        if self.mode == 2:
            return ticks != 0 and ticks % self.count == 0
        if self.mode == 3:
            return ticks % self.count < (self.count + 1) >> 1
        if self.mode in (4, 5):
            return ticks == self.count
        return ticks >= self.count

    def latch_count(self, elapsed: int) -> None:
        """Keep the counter's value for reading."""
        if not self.count_latched:
            self.latched_count = self.value(elapsed) & 0xFFFF
            self.count_latched = self.rw_mode

    def latch_status(self, elapsed: int) -> None:
        """Keep output, access and mode for reading."""
        if not self.status_latched:
            self.status = self.output(elapsed) << 7 | self.rw_mode << 4 | self.mode << 1 & 0xFF | self.bcd
            self.status_latched = 1

    def select(self, control: int) -> None:
        """A control word: access and mode."""
        self.rw_mode = self.read_state = self.write_state = control >> 4 & 3
        self.mode = control >> 1 & 7
        if self.mode > 5:
            self.mode -= 4
        self.bcd = control & 1

    def read(self, elapsed: int) -> int:
        """IN: the latched status, the latched count, or the count now, a byte at a time."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            part, count = self.count_latched, self.latched_count
            self.count_latched = MSB if part == WORD0 else 0
            return count >> 8 if part == MSB else count & 0xFF
        count, part = self.value(elapsed), self.read_state
        self.read_state = {WORD0: WORD1, WORD1: WORD0}.get(part, part)
        return (count >> 8 if part in (MSB, WORD1) else count) & 0xFF

    def write(self, value: int) -> int | None:
        """OUT: the new count once all of its bytes have come."""
        part = self.write_state
        if part == WORD0:
            self.write_latch, self.write_state = value, WORD1
            return None
        if part == WORD1:
            self.write_state = WORD0
            return self.write_latch | value << 8
        return value if part == LSB else value << 8 if part == MSB else None


class Pit:
    """``struct kvm_pit``; ``flags`` of KVM_CREATE_PIT2."""

    def __init__(self, flags: int = 0) -> None:
        self.flags = flags
        self.channels = tuple(Channel(number) for number in range(3))
        self.speaker_on = 0
        self.due: int | None = None
        self.period = 0

    def state(self) -> tuple[Any, ...]:
        """All of it as one hashable value."""
        channels = tuple(channel.state() for channel in self.channels)
        return self.flags, channels, self.speaker_on, self.due, self.period

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        self.flags, channels, self.speaker_on, self.due, self.period = state
        for channel, kept in zip(self.channels, channels, strict=True):
            channel.load(kept)

    @property
    def has_speaker(self) -> bool:
        """Port 0x61 is answered here."""
        return bool(self.flags & SPEAKER_DUMMY)

    def answers(self, port: int) -> bool:
        """The port is one of its own."""
        return port in PORTS or (port == SPEAKER and self.has_speaker)

    def elapsed(self, number: int, now: int) -> int:
        """Time since a counter was loaded; the first one's is that of its timer."""
        if number:
            return now - self.channels[number].loaded
        if not self.period:
            return 0
        return self.period - (max(0, self.due - now) if self.due is not None else 0)

    def fired(self, now: int) -> bool:
        """The first counter has come to its end: whether it interrupts; a periodic one goes on."""
        if self.due is None or now < self.due:
            return False
        if self.channels[0].mode in PERIODIC_MODES:
            self.due += ((now - self.due) // self.period + 1) * self.period
        else:
            self.due = None
        return True

    def _load_count(self, number: int, count: int, now: int) -> None:
        channel = self.channels[number]
        channel.count = count or 0x10000
        if number:
            channel.loaded = now
            return
        periodic = channel.mode in PERIODIC_MODES
        self.due, self.period = None, 0
        if periodic or channel.mode in ONE_SHOT_MODES:
            self.period = channel.count * SECOND // FREQUENCY
            if periodic:
                self.period = max(self.period, MIN_PERIOD_NS)
            self.due = now + self.period

    def read(self, port: int, now: int) -> int:
        """IN of one byte."""
        if port == SPEAKER:
            beeper = self.channels[2]
            output = beeper.output(self.elapsed(2, now))
            return self.speaker_on << 1 | beeper.gate | output << 5 | (now >> 14 & 1) << 4
        number = port & 3
        return 0 if port == CONTROL else self.channels[number].read(self.elapsed(number, now))

    def write(self, port: int, value: int, now: int) -> None:
        """OUT of one byte."""
        if port == SPEAKER:
            self.speaker_on = value >> 1 & 1
            self._set_gate(2, value & 1, now)
        elif port == CONTROL:
            self._control(value, now)
        else:
            count = self.channels[port & 3].write(value)
            if count is not None:
                self._load_count(port & 3, count, now)

    def _control(self, value: int, now: int) -> None:
        number = value >> 6
        if number < 3:
            if value >> 4 & 3:
                self.channels[number].select(value)
            else:
                self.channels[number].latch_count(self.elapsed(number, now))
            return
        for each, channel in enumerate(self.channels):  # read-back
            if value >> each + 1 & 1:
                if not value & 0x20:
                    channel.latch_count(self.elapsed(each, now))
                if not value & 0x10:
                    channel.latch_status(self.elapsed(each, now))

    def _set_gate(self, number: int, gate: int, now: int) -> None:
        channel = self.channels[number]
        if channel.mode in (1, 2, 3, 5) and channel.gate < gate:
            channel.loaded = now
        channel.gate = gate

    def saved(self) -> bytes:
        """KVM_GET_PIT2."""
        return b"".join(CHANNEL.pack(*channel.state()) for channel in self.channels) + FLAGS.pack(self.flags)

    def restore(self, state: bytes, now: int) -> None:
        """KVM_SET_PIT2: the first counter is loaded anew."""
        for number, channel in enumerate(self.channels):
            channel.load(CHANNEL.unpack_from(state, number * CHANNEL.size))
        (self.flags,) = struct.unpack_from("<I", state, 3 * CHANNEL.size)
        self._load_count(0, self.channels[0].count, now)
