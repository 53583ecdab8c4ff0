"""Why a vCPU stopped: the core's exits, as they wait in ``kvm_run`` or for their completion."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag
from pydantic import model_validator as checked

from kickstand.core.run import exits
from kickstand.core.uapi import InternalError
from kickstand.journal.form.part import Part, Unsigned, Vector

MOST_ELEMENTS = 1024  # of one port access
ExitBytes = Annotated[bytes, Field(max_length=8)]
PortBytes = Annotated[bytes, Field(max_length=8 * MOST_ELEMENTS)]


class Exit(Part):
    """Why a vCPU stopped; its kind is the name of the core's class."""

    def living(self) -> Any:
        """The core's own object."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        return getattr(exits, self.kind)(**given)  # type: ignore[attr-defined]  # every one has it


class Io(Exit):
    """``IoExit``: an OUT carries all of its elements, an IN none."""

    kind: Literal["IoExit"] = "IoExit"
    direction: Literal["in", "out"]
    size: Literal[1, 2, 4, 8]
    port: Annotated[int, Field(ge=0, le=0xFFFF)]
    count: Annotated[int, Field(ge=1, le=MOST_ELEMENTS)]
    data: PortBytes

    @checked(mode="after")
    def is_whole(self) -> Self:
        """As many bytes as it says."""
        _check_length(self.data, self.size * self.count if self.direction == "out" else 0)
        return self


class Mmio(Exit):
    """``MmioExit``: a write carries its bytes, a read none."""

    kind: Literal["MmioExit"] = "MmioExit"
    phys_addr: Unsigned
    len: Annotated[int, Field(ge=1, le=8)]
    is_write: bool
    data: ExitBytes

    @checked(mode="after")
    def is_whole(self) -> Self:
        """As many bytes as it says."""
        _check_length(self.data, self.len if self.is_write else 0)
        return self


def _check_length(data: bytes, length: int) -> None:
    if len(data) != length:
        raise ValueError(f"an exit of {length} bytes with {len(data)}")


class Hlt(Exit):
    """``HltExit``."""

    kind: Literal["HltExit"] = "HltExit"


class Shutdown(Exit):
    """``ShutdownExit``."""

    kind: Literal["ShutdownExit"] = "ShutdownExit"


class Eoi(Exit):
    """``EoiExit``."""

    kind: Literal["EoiExit"] = "EoiExit"
    vector: Vector


class TprAccess(Exit):
    """``TprAccessExit``."""

    kind: Literal["TprAccessExit"] = "TprAccessExit"
    rip: Unsigned
    is_write: bool


class Window(Exit):
    """``WindowExit``."""

    kind: Literal["WindowExit"] = "WindowExit"


class Internal(Exit):
    """``InternalErrorExit``."""

    kind: Literal["InternalErrorExit"] = "InternalErrorExit"
    suberror: InternalError
    data: Annotated[tuple[Unsigned, ...], Field(max_length=16)]
    gpa: Unsigned | None


class Msr(Exit):
    """``MsrExit``, of those that userspace answers."""

    kind: Literal["MsrExit"] = "MsrExit"
    index: Annotated[int, Field(ge=0, lt=1 << 32)]
    is_write: bool
    value: Unsigned
    ns_ahead: Unsigned
    msr_reason: Literal[1, 2, 4]


class Hypercall(Exit):
    """``HypercallExit``."""

    kind: Literal["HypercallExit"] = "HypercallExit"
    nr: Unsigned
    args: Annotated[tuple[Unsigned, ...], Field(max_length=6)]
    longmode: bool


class Debug(Exit):
    """``DebugExit``."""

    kind: Literal["DebugExit"] = "DebugExit"
    exception: Literal[1, 3]
    pc: Unsigned
    dr6: Unsigned
    dr7: Unsigned


class Tpr(Exit):
    """``TprExit``."""

    kind: Literal["TprExit"] = "TprExit"


class RingFull(Exit):
    """``RingFullExit``."""

    kind: Literal["RingFullExit"] = "RingFullExit"


def _kind(exit: Any) -> str:
    return str(exit.get("kind")) if isinstance(exit, dict) else getattr(exit, "kind", type(exit).__name__)


Access = Annotated[
    Annotated[Io, Tag("IoExit")]
    | Annotated[Mmio, Tag("MmioExit")]
    | Annotated[Msr, Tag("MsrExit")]
    | Annotated[Hypercall, Tag("HypercallExit")],
    Discriminator(_kind),
]
UserExit = Annotated[
    Annotated[Io, Tag("IoExit")]
    | Annotated[Mmio, Tag("MmioExit")]
    | Annotated[Hlt, Tag("HltExit")]
    | Annotated[Shutdown, Tag("ShutdownExit")]
    | Annotated[Window, Tag("WindowExit")]
    | Annotated[Eoi, Tag("EoiExit")]
    | Annotated[TprAccess, Tag("TprAccessExit")]
    | Annotated[Internal, Tag("InternalErrorExit")]
    | Annotated[Msr, Tag("MsrExit")]
    | Annotated[Hypercall, Tag("HypercallExit")]
    | Annotated[Debug, Tag("DebugExit")]
    | Annotated[Tpr, Tag("TprExit")]
    | Annotated[RingFull, Tag("RingFullExit")],
    Discriminator(_kind),
]
