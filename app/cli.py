"""``kickstand``: the server, the demo, replay and explorer, and client commands equal to the API."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands import memory, vcpu, vm, watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the panels of rich cost as much as all the rest of `--help`
    help="A KVM you can curl: vCPUs, memory slots, kick and resume, and an explorer that proves or breaks them.",
)
app.add_typer(vm.app, name="vm")
app.add_typer(vcpu.app, name="vcpu")
app.add_typer(memory.app, name="memory")
app.command()(watch.events)
app.command()(watch.trace)
app.command()(watch.top)

ENGINES = ("script", "x86", "kvm")


def main() -> None:
    """The entry point: 0 done, 1 failed, 2 usage."""
    if os.getpid() == 1:  # the first process of a container: the kernel has no default for SIGTERM there
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app()


def _fail(message: str) -> typer.Exit:
    print(f"kickstand: {message}", file=sys.stderr)
    return typer.Exit(1)


VariantModule = Annotated[
    Path | None, typer.Option("--variant-module", help="A Python file with a variant of your own.")
]


def _load_variant(path: Path | None) -> None:
    if path is None:
        return
    from app.core.variants import load_variant_module

    try:
        load_variant_module(path)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--variant-module") from None


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 takes a free one.")] = 8000,
    uds: Annotated[Path | None, typer.Option(help="Bind a Unix socket (mode 0600) instead.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Keep state here, instead of in the user's state directory.")
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep no state.")] = False,
    token_file: Annotated[Path | None, typer.Option(help="A file with the bearer token clients must send.")] = None,
    vcpus: Annotated[int, typer.Option(min=0, help="vCPUs of the VM 'default'.")] = 4,
    variant: Annotated[str, typer.Option(help="Its variant.")] = "sticky",
    engine: Annotated[str, typer.Option(help="Its guest engine.")] = "script",
    default_vm: Annotated[bool, typer.Option("--default-vm/--no-default-vm", help="Create the VM 'default'.")] = True,
    allow_reset: Annotated[bool, typer.Option("--allow-reset", help="Allow POST /reset.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further Host name to answer to.")] = None,
    variant_module: VariantModule = None,
) -> None:
    """Run the server; prints one URL to click."""
    _load_variant(variant_module)
    from app.core.errors import KvmError
    from app.main import serve as run_server
    from app.settings import Settings

    try:
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
        run_server(settings)
    except (KvmError, OSError, ValueError) as error:
        raise _fail(str(error)) from None


@app.command()
def demo(
    engine: Annotated[list[str] | None, typer.Option(help="script, x86 or kvm; may be given more than once.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Merges (and splits) per variant, without and with protection.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Merge memory under running guests, without and with each variant, and print what they saw."""
    from app import demo as story

    engines = engine or ["script", "x86"]
    if unknown := set(engines) - set(ENGINES):
        raise typer.BadParameter(f"{min(unknown)!r} is none of {', '.join(ENGINES)}", param_hint="--engine")
    rows = story.run(engines, rounds, progress=not as_json and sys.stderr.isatty())
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(story.table(rows))
        console.print(story.summary(rows), highlight=False)
    if not all(row.as_expected for row in rows):
        raise typer.Exit(1)


@app.command()
def replay(
    paths: Annotated[list[Path], typer.Argument(help="Scripts (.json, .jsonl, .gz) or folders of them.", exists=True)],
    engine: Annotated[str | None, typer.Option(help="script, x86 (the default) or kvm.")] = None,
    variant: Annotated[str | None, typer.Option(help="Play under this variant.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with this engine's answers, not the recorded ones.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Play on this server instead of in this process.")] = None,
    token: Annotated[str | None, typer.Option(envvar="KICKSTAND_TOKEN", help="Its bearer token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Play ioctl scripts and compare every recorded answer."""
    from app.core.errors import KvmError
    from app.scripts.errors import ScriptError
    from app.scripts.http_player import ServerError
    from app.scripts.replay import replay as play

    for name in (engine, against):
        if name is not None and name not in ENGINES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(ENGINES)}", param_hint="--engine")
    try:
        with _replay_bar(enabled=not as_json and sys.stderr.isatty()) as (started, progress):
            summary = play(paths, engine=engine, variant=variant, url=url, token=token, against=against,
                           started=started, progress=progress)  # fmt: skip
    except (ScriptError, ServerError, KvmError, OSError) as error:
        raise _fail(str(error)) from None
    print(json.dumps(summary.as_json()) if as_json else "\n".join(summary.lines()))
    if summary.failed:
        raise typer.Exit(1)


@contextmanager
def _replay_bar(
    *, enabled: bool
) -> Generator[tuple[Callable[[Sequence[Any]], object], Callable[[Any, Any], None]], None, None]:
    """A progress bar over traces, or nothing."""
    if not enabled:
        yield len, lambda _trace, _failure: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying")
        yield lambda traces: bar.update(task, total=len(traces)), lambda _trace, _failure: bar.advance(task)


@app.command()
def explore(
    scenario: Annotated[str, typer.Option(help="A built-in scenario's name, or a YAML or JSON file.")] = "merge",
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant; may be given more than once. Default: all.")
    ] = None,
    behaviour: Annotated[list[str] | None, typer.Option(help="well or careless userspace. Default: both.")] = None,
    vcpus: Annotated[int | None, typer.Option(min=1, max=4, help="vCPUs of the VM that is kicked.")] = None,
    vmms: Annotated[int, typer.Option(min=1, max=2, help="VMM threads, each with a transaction of its own.")] = 1,
    prop: Annotated[list[str] | None, typer.Option("--property", help="A property. Default: all.")] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Tables only; 1 and 2 vCPUs unless --vcpus says.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Cores that share the cells, and each large cell.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="A Dask scheduler's address (extra: cluster).")] = None,
    strategy: Annotated[str, typer.Option(help="states (exhaustive), random or pct.")] = "states",
    max_states: Annotated[int | None, typer.Option(min=1, help="Give up, undecided, after so many states.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random strategies.")] = 0,
    replay_token: Annotated[
        str | None, typer.Option("--replay", help="Perform a counterexample on the runtime.")
    ] = None,
    ledger: Annotated[bool, typer.Option("--ledger", help="Print each requirement and what demonstrates it.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="Print the posted patch's defects as columns.")] = False,
    perfetto: Annotated[Path | None, typer.Option(help="Write the first counterexample here as a trace.")] = None,
    variant_module: VariantModule = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Prove or break variants: every interleaving of the code that the server runs."""
    from rich.console import Console

    from app.explore import command

    console = Console(width=None if sys.stdout.isatty() else 160)
    if ledger:
        raise typer.Exit(command.print_ledger(console, as_json=as_json))
    if gallery:
        raise typer.Exit(command.print_gallery())
    if replay_token is not None:
        _load_variant(variant_module)
        raise typer.Exit(command.replay_one(replay_token, console, as_json=as_json))
    options = command.Options(
        scenario=scenario, variants=tuple(variant or ()), behaviours=tuple(behaviour or ()), vcpus=vcpus, vmms=vmms,
        properties=tuple(prop or ()), matrix=matrix, workers=workers, cluster=cluster, strategy=strategy, seed=seed,
        variant_module=None if variant_module is None else str(variant_module), json=as_json, perfetto=perfetto,
    )  # fmt: skip
    if max_states is not None:
        options.max_states = max_states
    raise typer.Exit(command.run(options, console))


@app.command()
def openapi() -> None:
    """Print the schema of the API."""
    from app.main import create_app
    from app.settings import Settings

    print(json.dumps(create_app(Settings(ephemeral=True)).openapi(), indent=1, sort_keys=True))
