"""``kickstand``: the server, the demo, replay and explorer, and client commands equal to the API."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from kickstand import __version__
from kickstand.commands.client import memory, vcpu, vm, watch
from kickstand.commands.client.connection import AsJson
from kickstand.commands.client.options import Engine, OneOf, VariantModule, load_variant
from kickstand.commands.client.trouble import USAGE, refusals, refused, run
from kickstand.commands.explore import explore
from kickstand.commands.replay import replay

PROGRAMS = ("serve", "demo", "explore", "replay", "exec", "doctor", "openapi")  # the order in which help tells them


class Family(typer.core.TyperGroup):
    """Programs first, then the client commands, which ask a server."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of help."""
        names = super().list_commands(ctx)
        return [name for name in PROGRAMS if name in names] + [name for name in names if name not in PROGRAMS]


app = typer.Typer(
    cls=Family,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the panels of rich cost as much as all the rest of `--help`
    help="A KVM you can curl: vCPUs, memory slots, kick and resume, and an explorer that proves or breaks them.",
)
app.add_typer(vm.app, name="vm")
app.add_typer(vcpu.app, name="vcpu")
app.add_typer(memory.app, name="memory")
watch.register(app)
app.command()(explore)
app.command()(replay)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kickstand {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass  # typer shows its docstring instead of the family's


def main() -> None:
    """The entry point: 0 done, 1 failed, 2 usage."""
    if os.getpid() == 1:  # the first process of a container: the kernel has no default for SIGTERM there
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run(app, sys.argv[1:]))


@app.command()
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to bind.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to bind; 0 takes a free one.")
    ] = 8000,
    uds: Annotated[Path | None, typer.Option(metavar="PATH", help="Bind a Unix socket (mode 0600) instead.")] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep state here, instead of in the user's state directory.")
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep no state.")] = False,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the bearer token clients must send.")
    ] = None,
    vcpus: Annotated[int, typer.Option(min=0, metavar="N", help="vCPUs of the VM 'default'.")] = 4,
    variant: Annotated[str, typer.Option(metavar="VARIANT", help=f"Its variant. {OneOf}")] = "sticky",
    engine: Annotated[Engine, typer.Option(help="Its guest engine.")] = Engine.SCRIPT,
    default_vm: Annotated[bool, typer.Option("--default-vm/--no-default-vm", help="Create the VM 'default'.")] = True,
    allow_reset: Annotated[bool, typer.Option("--allow-reset", help="Allow POST /reset.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further Host name to answer to.")
    ] = None,
    variant_module: VariantModule = None,
) -> None:
    """Run the server; prints one URL to click."""
    load_variant(variant_module)
    from kickstand.core.errors import KvmError
    from kickstand.core.variants import variant as check_variant
    from kickstand.main import serve as run_server
    from kickstand.settings import Settings

    with refusals(KvmError, ValueError, status=USAGE):
        check_variant(variant)
        settings = Settings(
            host=host,
            port=port,
            uds=uds,
            state_dir=state,
            ephemeral=ephemeral,
            token_file=token_file,
            vcpus=vcpus,
            variant=variant,
            engine=engine,
            default_vm=default_vm,
            allow_reset=allow_reset,
            allowed_hosts=tuple(allow_host or ()),
        )
    with refusals(KvmError, OSError, ValueError):
        run_server(settings)


@app.command()
def doctor(
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Tell what is in a state directory, and what is damaged.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to try.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Tell what works here, what does not, and what to do."""
    from dataclasses import asdict

    from kickstand.commands import doctor as checks
    from kickstand.journal.examine import examine
    from kickstand.settings import SettingsError

    with refusals(SettingsError, status=USAGE):
        findings = checks.check_machine(port) if state is None else examine(state)
    well = all(finding.state != "damaged" for finding in findings)
    if as_json:
        print(json.dumps({"ok": well, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("\n".join(checks.lines(findings)))
    if not well:
        raise typer.Exit(1)


@app.command()
def demo(
    engine: Annotated[
        list[Engine] | None,
        typer.Option(metavar="script|x86|kvm", help="Repeatable; script and x86 otherwise, x86 for QEMU."),
    ] = None,
    client: Annotated[
        Literal["qemu"] | None,
        typer.Option(help="Whose memory changes: QEMU's, instead of that of a VMM of the demo's own."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="N",
            help="Merges (and splits) per variant, without and with protection (20); transactions of QEMU (400).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge memory under running guests, without and with each variant."""
    rows: Sequence[Any]
    if client is None:
        rows = _demo_of_variants(engine or [Engine.SCRIPT, Engine.X86], rounds or 20, as_json=as_json)
    elif Engine.SCRIPT in (engine or ()):
        raise typer.BadParameter("QEMU's guest is machine code: x86 or kvm", param_hint="--engine")
    else:
        rows = _demo_of_qemu(engine or [Engine.X86], rounds or 400, as_json=as_json)
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}))
    if not all(row.as_expected for row in rows):
        raise typer.Exit(1)


def _demo_of_variants(engines: list[Engine], rounds: int, *, as_json: bool) -> Sequence[Any]:
    from kickstand.client import KickstandError
    from kickstand.commands.demo.story import run as play
    from kickstand.commands.demo.told import Silent, Told

    try:
        return play(engines, rounds, Silent() if as_json else Told())
    except KickstandError as error:
        raise refused(error.problem) from None


def _demo_of_qemu(engines: list[Engine], transactions: int, *, as_json: bool) -> Sequence[Any]:
    from kickstand.commands.demo.qemu.race import UnusableError
    from kickstand.commands.demo.qemu.story import run as play

    with refusals(UnusableError):
        return play(engines, transactions, (lambda _line: None) if as_json else partial(print, flush=True))


@app.command(
    "exec",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def exec_(context: typer.Context) -> None:
    """Run an unmodified program whose /dev/kvm is the emulator."""
    from kickstand.commands.program import run as run_program

    raise typer.Exit(run_program(context.args))


@app.command()
def openapi() -> None:
    """Print the schema of the API."""
    from kickstand.main import create_app
    from kickstand.settings import Settings

    print(json.dumps(create_app(Settings(ephemeral=True)).openapi(), indent=1, sort_keys=True))
