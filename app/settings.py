"""What one server is started with, and the limits that keep a client from taking everything.

Settings are made once, checked when they are made, and never change; ``SettingsError`` is a sentence for the
person at the command line.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from kickstand.core.uapi import MAX_VCPUS

HIGHEST_PORT = 0xFFFF


class SettingsError(ValueError):
    """These settings cannot be served, and why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server gives away at most. Sizes in bytes, times in milliseconds."""

    vms: int = 64
    vcpus_per_vm: int = MAX_VCPUS
    vcpus: int = 4_096  # of all VMs together
    memory_per_vm: int = 4 << 30
    memory: int = 16 << 30  # of all VMs together
    parked_runs: int = 2_048
    run_timeout_ms: int = 60_000
    script_operations: int = 10_000
    transaction_operations: int = 4_096
    body: int = 16 << 20
    bodies: int = 256 << 20  # of all requests that are under way
    json: int = 4 << 20  # bytes of a body that is JSON
    json_values: int = 1 << 17  # of one body: what a parser takes a fiftieth of a second for
    streams: int = 512
    connections: int = 4_096  # fewer where there are fewer descriptors
    explorations: int = 2
    exploration_states: int = 20_000_000
    snapshot: int = 5 << 30


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How event streams behave. Times in seconds; ``backlog`` counts events."""

    heartbeat_s: float = 10.0
    tick_s: float = 0.005  # events that come closer together than this share one write
    stream_s: float = 0.0001  # the same for each open stream: about twice what a write to one takes
    backlog: int = 8_192  # a reader further behind gets a gap and a snapshot
    write_timeout_s: float = 120.0  # a reader that takes nothing for so long is cut off; before that it gets a gap


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """How long a request may take to arrive. Times in seconds; ``slowest`` is a rate in bytes a second."""

    first_s: float = 20.0  # from the connection to the end of the first request's head; browsers connect ahead
    head_s: float = 10.0  # from the first byte of a later request to the end of its head
    body_s: float = 30.0  # without a byte of the body
    slowest: int = 16 << 10  # a body that comes more slowly uses its time up


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """How the journal keeps. Times in seconds, sizes in bytes."""

    tick_s: float = 0.1  # events are kept this often
    progress_s: float = 1.0  # what running guests have done is kept this often
    upkeep_s: float = 30.0  # old events are forgotten, and the log is shortened, this often
    event_bytes: int = 256 << 20
    event_age_s: float = 7 * 86_400
    reserve: int = 1 << 20  # calls are refused while less than this is free on the disk


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``kickstand serve``. ``ephemeral``: nothing outlives the process."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # further names that clients may reach the server by
    default_vm: bool = True
    vcpus: int = 4
    variant: str = "sticky"
    engine: str = "script"
    allow_reset: bool = False
    ephemeral: bool = True
    state_dir: Path | None = None  # None, unless ephemeral: the user's own
    limits: Limits = field(default_factory=Limits)
    streams: StreamSettings = field(default_factory=StreamSettings)
    requests: RequestSettings = field(default_factory=RequestSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)

    def __post_init__(self) -> None:
        """Refuse what would be unsafe or could never start."""
        if self.ephemeral and self.state_dir is not None:
            raise SettingsError("--state keeps state and --ephemeral keeps none: choose one of them")
        if not 0 <= self.port <= HIGHEST_PORT:
            raise SettingsError(f"port {self.port} is not between 0 and 65535")
        if not 0 <= self.vcpus <= self.limits.vcpus_per_vm:
            raise SettingsError(f"{self.vcpus} vcpus are not between 0 and {self.limits.vcpus_per_vm}")
        if self.uds is None and self.token_file is None and not is_loopback(self.host):
            raise SettingsError(
                f"{self.host} can be reached from other machines: refused without a token (--token-file FILE)"
            )

    def token(self) -> str | None:
        """Read the bearer token; None without a token file. ``SettingsError`` if the file is of no use."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"token file {self.token_file}: {error}") from error
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError(f"token file {self.token_file}: a token is one word of printable ASCII characters")
        return token


def is_loopback(host: str) -> bool:
    """True if only this machine can reach an address; a name other than ``localhost`` is not trusted to be one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
