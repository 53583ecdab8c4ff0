"""``kickstand explore``: what can be asked of the explorer, and which of its answers is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kickstand.commands.client.connection import AsJson
from kickstand.commands.client.options import PROPERTIES, Behaviour, OneOf, VariantModule, load_variant
from kickstand.commands.client.show import console
from kickstand.commands.client.trouble import USAGE, refusals


def explore(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL.py]", help="A protocol of your own, instead of KVM's.")
    ] = None,
    scenario: Annotated[
        str, typer.Option(metavar="SCENARIO", help="A built-in scenario's name, or a YAML or JSON file.")
    ] = "merge",
    variant: Annotated[
        list[str] | None, typer.Option(metavar="VARIANT", help=f"Repeatable; all otherwise. {OneOf}")
    ] = None,
    behaviour: Annotated[
        list[Behaviour] | None,
        typer.Option(metavar="well|careless", help="Userspace after EINTR; both otherwise."),
    ] = None,
    vcpus: Annotated[
        int | None, typer.Option(min=1, max=4, metavar="N", help="vCPUs of the VM that is kicked.")
    ] = None,
    vmms: Annotated[
        int, typer.Option(min=1, max=2, metavar="N", help="VMM threads, each with a transaction of its own.")
    ] = 1,
    prop: Annotated[
        list[str] | None,
        typer.Option("--property", metavar="PROPERTY", help=f"Repeatable; all otherwise. {PROPERTIES}"),
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Tables only; 1 and 2 vCPUs unless --vcpus says.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cores that share the cells, and each large cell.")
    ] = 1,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler's address (extra: cluster).")
    ] = None,
    strategy: Annotated[
        Literal["states", "random", "pct"], typer.Option(help="Exhaustive, or one of two ways to sample.")
    ] = "states",
    max_states: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Give up, undecided, after so many states.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Of the random strategies.")] = 0,
    replay_token: Annotated[
        str | None, typer.Option("--replay", metavar="TOKEN", help="Perform a counterexample on the runtime.")
    ] = None,
    ledger: Annotated[bool, typer.Option("--ledger", help="Print each requirement and what demonstrates it.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="Print the posted patch's defects as columns.")] = False,
    memory: Annotated[
        Literal["sc", "tso"], typer.Option(help="Sequential consistency, or x86's store buffers.")
    ] = "sc",
    without: Annotated[
        str | None, typer.Option(metavar="BARRIER", help="Leave one of the kernel's barriers out (with --memory tso).")
    ] = None,
    any_number: Annotated[
        bool | None,
        typer.Option(
            "--any-number/--no-any-number",
            help="Whether what holds does so for every number of vCPUs; asked of one variant in any case, but less.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a report for a mailing list here, as text and HTML.")
    ] = None,
    perfetto: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first counterexample here as a trace.")
    ] = None,
    variant_module: VariantModule = None,
    as_json: AsJson = False,
) -> None:
    """Prove or break variants: every interleaving of the server's code."""
    from kickstand.explore import command

    if model is not None and (ledger or gallery):
        raise typer.BadParameter("they are about the built-in variants", param_hint="--ledger and --gallery")
    if ledger:
        raise typer.Exit(command.print_ledger(console(), as_json=as_json))
    if gallery:
        raise typer.Exit(command.print_gallery())
    if replay_token is not None:
        load_variant(variant_module)
        with refusals(command.Refused, status=USAGE), refusals(command.ReplayError):
            file = None if model is None else str(model)
            raise typer.Exit(command.replay_one(replay_token, console(), as_json=as_json, model=file))
    if model is not None and model.suffix != ".py":
        raise typer.BadParameter(
            f"{model} is no Python file; scenarios are given with --scenario", param_hint="MODEL.py"
        )
    kvms = (("--variant", variant), ("--behaviour", behaviour), ("--vcpus", vcpus), ("--vmms", vmms > 1))
    if given := [name for name, value in kvms if model is not None and value]:
        raise typer.BadParameter("a protocol of your own has none", param_hint=" and ".join(given))
    sizes = (1, 2) if matrix else (1,)
    if without is not None and memory == "sc":
        raise typer.BadParameter("barriers are left out with --memory tso", param_hint="--without")
    ordered = memory if without is None else f"{memory}-{without}"
    alone = memory == "sc" and not matrix and len(variant or ()) == 1 and vmms == 1 and strategy == "states"
    number = int(alone) if any_number is None else 2 * any_number
    question = command.Question(
        scenario=scenario if model is None else str(model),
        variants=tuple(variant or ()), behaviours=tuple(behaviour or ()), vmms=vmms,
        vcpus=sizes if vcpus is None else (vcpus,), properties=tuple(prop or ()), strategy=strategy, seed=seed,
        max_states=max_states or command.MAX_STATES, workers=workers, any_number=number, memory=ordered,
        variant_module=None if variant_module is None else str(variant_module),
    )  # fmt: skip
    options = command.Options(question, matrix=matrix, cluster=cluster, json=as_json, perfetto=perfetto, report=report)
    with refusals(command.Refused, status=USAGE):
        command.check_size(scenario, vcpus, vmms)
        raise typer.Exit(command.run(options, console()))
