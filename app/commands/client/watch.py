"""``kickstand events``, ``trace`` and ``top``: watch a VM, live or afterwards."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Annotated, Literal

import typer

from kickstand.client import Client, Json
from kickstand.commands.client.connection import AsJson, client_command
from kickstand.commands.client.options import Output
from kickstand.commands.client.output import write
from kickstand.commands.client.show import vcpu_table

CLEAR = "\x1b[H\x1b[J"  # home, and nothing below
FASTEST_S = 0.05
HOUR_S = 3_600


def register(app: typer.Typer) -> None:
    """Add the three to a family of commands."""
    for command in (events, trace, top):
        client_command(app)(command)


def events(
    client: Client,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Resume after this id (EPOCH-SEQ).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print events as they happen."""
    for number, event in enumerate(client.events(after), 1):
        print(json.dumps(event) if as_json else _line(event), flush=True)
        if number == limit:
            return


def _line(event: Json) -> str:
    data = event["data"]
    shown = {name: value for name, value in data.items() if name not in ("seq", "vm", "vcpu", "t_ns")}
    if event["event"] == "snapshot":
        shown = {"vcpus": len(data.get("vcpus", ()))}
    who = "-" if data.get("vcpu") is None else f"vcpu {data['vcpu']}"
    rest = " ".join(f"{name}={value}" for name, value in shown.items())
    return f"{data.get('seq', '-'):>8} {who:>9} {event['event']:<20} {rest}"


def trace(
    client: Client,
    format: Annotated[
        Literal["perfetto", "chrome", "ftrace", "script", "events"], typer.Option(help="Which tool is to open it.")
    ] = "chrome",
    output: Output = None,
) -> None:
    """Write the recorded past as a file that other tools open."""
    write(client.trace(format), output)


def top(
    client: Client,
    interval: Annotated[
        float, typer.Option(min=FASTEST_S, max=HOUR_S, metavar="SECONDS", help="Between two looks.")
    ] = 0.5,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after so many looks.")] = None,
    as_json: AsJson = False,
) -> None:
    """A live table of the VM's vCPUs."""
    looks, wanted = 0, 1 if as_json and count is None else count
    while looks != wanted:
        if looks:
            time.sleep(interval)
        answer = client.vcpus()
        print(json.dumps(answer) if as_json else _screen(client.vm, answer), flush=True)
        looks += 1


def _screen(vm: str, answer: Json) -> str:
    """The table; on a terminal over the one before, and as much of it as there is room for."""
    lines = [f"vm {vm}", *vcpu_table(answer["vcpus"])]
    if not sys.stdout.isatty():
        return "\n".join(lines)
    room = shutil.get_terminal_size().lines - 2
    more = [f"... {len(lines) - room} more"] if len(lines) > room else []
    return CLEAR + "\n".join(lines[:room] + more)
