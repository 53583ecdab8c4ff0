"""Options and arguments that several commands have, with what they take and which choices there are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kickstand.commands.client.given import hex_or_file, list_or_file, number
from kickstand.commands.client.trouble import USAGE, refusals


class Engine(StrEnum):
    """What runs a guest."""

    SCRIPT = "script"
    X86 = "x86"
    KVM = "kvm"


class Behaviour(StrEnum):
    """What userspace does after EINTR: wait for RESUME, or call KVM_RUN again at once."""

    WELL = "well"
    CARELESS = "careless"


VARIANTS = ", ".join(
    sorted(path.stem for path in (Path(__file__).parents[2] / "core" / "variants").glob("*.py") if path.stem[0] != "_")
).replace("base, ", "")
OneOf = f"One of {VARIANTS}, or your own."
PROPERTIES = (
    "missing_slot, spurious_mmio, deadlock, bounded_busy, lost_exit, livelock, kick_returns, progress, "
    "resume_runs, dirty_kept, kick_drains, completed_once, signal_leaves, eintr_has_cause, balance, assertion, "
    "lost_wakeup, closed_window, no_bystander"
)
"""Of the explorer, for help texts: loading it would take too long. A test compares them with the code."""

Vcpu = Annotated[int, typer.Argument(metavar="VCPU", help="The vCPU's id.")]
Slot = Annotated[int, typer.Argument(metavar="SLOT", help="The slot's number.")]
Address = Annotated[int, typer.Argument(parser=number, metavar="ADDRESS")]
Size = Annotated[int, typer.Argument(parser=number, metavar="BYTES", help="Bytes, decimal or 0x...")]
Bytes = Annotated[bytes, typer.Argument(parser=hex_or_file, metavar="HEX", help="Bytes as hex, or @FILE, or -.")]
JsonList = Annotated[Any, typer.Argument(parser=list_or_file, metavar="JSON", help="A list as JSON, or @FILE, or -.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write here; standard output otherwise.")
]

VariantModule = Annotated[
    Path | None, typer.Option("--variant-module", metavar="FILE", help="A Python file with a variant of your own.")
]


def group(about: str) -> typer.Typer:
    """A family of commands; by itself it shows what there is."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=about)


def load_variant(path: Path | None) -> None:
    """Know the variants of a file of the user's, if one is given. ``Trouble``: it cannot be read, or has none."""
    if path is None:
        return
    from kickstand.core.variants import load_variant_module

    with refusals(OSError, ValueError, status=USAGE):
        load_variant_module(path)
