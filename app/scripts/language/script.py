"""A script as a whole: its operations, the VM it wants, and the checks that need more than one operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kickstand.scripts.language import operations as ops
from kickstand.scripts.language import structures
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import Operation, parse_operations
from kickstand.scripts.language.presets import PRESETS
from kickstand.scripts.language.values import Model, Name, Program


@dataclass(frozen=True, slots=True)
class ScriptLimits:
    """What one script may ask for. Sizes in bytes."""

    operations: int = 100_000
    memory: int = 4 << 30
    arenas: int = 4_096
    read: int = 16 << 20
    reads: int = 1 << 62  # in one script


LIMITS = ScriptLimits()
MAX_ID = 1024


class VmHeader(Model):
    """The VM a script wants; a recorded trace of a real KVM has none."""

    engine: Name | None = None
    variant: Name | None = None
    mode: Name | None = None
    irqchip: bool = False
    seed: int = 0
    switches: dict[str, bool | str] = Field(default_factory=dict)
    programs: list[Program] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trace:
    """One script: it begins on a fresh VM. ``results`` of the operations are what was recorded, if anything."""

    id: str
    operations: tuple[Operation, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PRESETS)
    vm: VmHeader = field(default_factory=VmHeader)
    file: Path | None = None
    """Where it was read, and ``number`` which of the file's scripts it is."""
    number: int = 0

    @property
    def recorded(self) -> bool:
        """There is something to compare with."""
        return any(operation.result is not None for operation in self.operations)


def parse_trace(
    value: object, name: str, presets: Mapping[str, Mapping[str, Any]] = PRESETS, limits: ScriptLimits = LIMITS
) -> Trace:
    """Check a whole trace: an object with ``ops`` (or ``operations``), or a bare list of operations.

    ``ScriptError`` names the trace, the operation and the field.
    """
    header = value if isinstance(value, dict) else {}
    trace_id = header.get("id", name)
    if not isinstance(trace_id, str) or len(trace_id) > MAX_ID:
        raise ScriptError(f"an id is a string of at most {MAX_ID} characters", trace=name, field="id")
    if header.get("dropped"):
        detail = "the beginning of this script was dropped when it was recorded: it cannot be replayed"
        raise ScriptError(detail, trace=trace_id, field="dropped")
    try:
        operations = parse_operations(header.get("ops", header.get("operations")) if header else value)
        check(operations, presets, limits)
        return Trace(trace_id, tuple(operations), presets, _header(header.get("vm")))
    except ScriptError as error:
        raise error.at(trace_id) from None


def _header(value: object) -> VmHeader:
    try:
        return VmHeader() if value is None else VmHeader.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ScriptError(
            first["msg"].removeprefix("Value error, "), field=".".join(["vm", *map(str, first["loc"])])
        ) from None


def check(
    operations: Sequence[Operation],
    presets: Mapping[str, Mapping[str, Any]] = PRESETS,
    limits: ScriptLimits = LIMITS,
    *,
    arenas: Mapping[str, int] | None = None,
    vcpus: Iterable[int] = (),
    started: Iterable[int] = (),
) -> None:
    """Look at a script's operations together: arenas and vCPUs come before their use, sizes fit, presets exist.

    ``arenas`` (sizes by name), ``vcpus`` and ``started`` (runs under way) are what the VM has already. Raises
    ``ScriptError``; touches nothing.
    """
    if len(operations) > limits.operations:
        raise ScriptError(f"{len(operations)} operations are more than the limit of {limits.operations}")
    checker = Checker(presets, limits, dict(arenas or {}), set(vcpus), set(started))
    for number, operation in enumerate(operations):
        try:
            checker.check(operation.args)
        except ScriptError as error:
            raise ScriptError(error.detail, operation=number, op=operation.op, field=error.field) from None


def _no(field: str, detail: str) -> ScriptError:
    return ScriptError(detail, field=f"args.{field}")


class Checker:
    """Looks at one operation after the other; what it has seen is what the VM will have."""

    def __init__(
        self,
        presets: Mapping[str, Mapping[str, Any]],
        limits: ScriptLimits,
        arenas: dict[str, int],
        vcpus: set[int],
        started: set[int],
    ) -> None:
        self.presets = presets
        self.limits = limits
        self.arenas = arenas
        self.memory = sum(arenas.values())
        self.reads = 0
        self.vcpus = vcpus
        self.started = started

    def check(self, args: ops.Args) -> None:
        """Raise ``ScriptError`` unless ``args`` can follow what was seen."""
        if isinstance(args, ops.Arena):
            self._add(args)
        elif isinstance(args, ops.OfArena):
            self._range(args, self._size(args.arena, "arena"))
        elif isinstance(args, ops.CreateVcpu):
            self.vcpus.add(args.id)
        elif isinstance(args, ops.OfVcpu):
            self._vcpu(args.vcpu)
            self._overlap(args)
        self._rest(args)

    def _overlap(self, args: ops.OfVcpu) -> None:
        """Between ``start_run`` and ``finish_run`` a script may not wait for the same vCPU."""
        if isinstance(args, ops.FinishRun):
            if args.vcpu not in self.started:
                raise _no("vcpu", f"there is no start_run of {args.vcpu} before this")
            self.started.remove(args.vcpu)
        elif args.vcpu in self.started and not isinstance(args, ops.Signal | ops.SetRunFlag):
            raise _no("vcpu", f"vcpu {args.vcpu} is in KVM_RUN until its finish_run")
        elif isinstance(args, ops.StartRun):
            self.started.add(args.vcpu)

    def _rest(self, args: ops.Args) -> None:
        if isinstance(args, ops.SetSregs) and args.preset is not None and args.preset not in self.presets:
            raise _no("preset", f"no preset {args.preset!r}; there are {', '.join(self.presets)}")
        if isinstance(args, ops.SetMemoryRegion):
            self._host(args, "host")
        if isinstance(args, ops.MemoryTransaction):
            for index, region in enumerate(args.operations):
                self._host(region, f"operations.{index}.host")
        if isinstance(args, ops.Ioctl):
            self._ioctl(args)
        if isinstance(args, ops.RawIoctl) and args.on == "vcpu":
            if args.vcpu is None:
                raise _no("vcpu", "an ioctl on a vcpu says on which")
            self._vcpu(args.vcpu)

    def _ioctl(self, args: ops.Ioctl) -> None:
        if args.vcpu is not None:
            self._vcpu(args.vcpu)
            if args.vcpu in self.started:
                raise _no("vcpu", f"vcpu {args.vcpu} is in KVM_RUN until its finish_run")
        structures.pages_of(args, structures.declared(args))

    def _add(self, args: ops.Arena) -> None:
        if args.name in self.arenas:
            raise _no("name", f"there is an arena {args.name!r} already")
        self.arenas[args.name] = args.size
        self.memory += args.size
        if self.memory > self.limits.memory:
            raise _no("size", f"more than {self.limits.memory} bytes of host memory in all")
        if len(self.arenas) > self.limits.arenas:
            raise _no("name", f"more than {self.limits.arenas} arenas")

    def _size(self, name: str, field: str) -> int:
        if name not in self.arenas:
            raise _no(field, f"there is no arena {name!r} yet")
        return self.arenas[name]

    def _host(self, args: ops.SetMemoryRegion, field: str) -> None:
        if args.host.arena is not None:
            self._size(args.host.arena, f"{field}.arena")

    def _range(self, args: ops.OfArena, size: int) -> None:
        if isinstance(args, ops.WriteHost):
            _within(args.offset, len(args.hex) // 2, size, "hex")
        elif isinstance(args, ops.FillHost):
            _within(args.offset, args.length, size, "length")
        elif isinstance(args, ops.ReadHost):
            _within(args.offset, args.length, size, "length")
            if args.length > self.limits.read:
                raise _no("length", f"more than {self.limits.read} bytes in one operation")
            self.reads += args.length
            if self.reads > self.limits.reads:
                raise _no("length", f"more than {self.limits.reads} bytes in one answer; ask for NDJSON, or twice")

    def _vcpu(self, vcpu: int) -> None:
        if vcpu not in self.vcpus:
            raise _no("vcpu", f"there is no create_vcpu of {vcpu} before this")


def _within(offset: int, length: int, size: int, field: str) -> None:
    if offset > size:
        raise _no("offset", f"{offset} is past the end of the arena ({size} bytes)")
    if offset + length > size:
        raise _no(field, f"{length} bytes at {offset} pass the end of the arena ({size} bytes)")
