"""``kickstand events``, ``trace`` and ``top``: watch a VM, live or afterwards."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client import Json
from app.commands.common import DEFAULT_URL, AsJson, Token, Uds, Url, VmName, connected

GLYPHS = {"user": "·", "waiting": "…", "kernel": "k", "guest": "▶", "exiting": "◀", "halted": "z", "blocked": "■"}


def events(
    after: Annotated[str | None, typer.Option(help="Resume after this id (EPOCH-SEQ).")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Print events as they happen."""
    with connected(url, token, uds, vm) as client:
        try:
            for number, event in enumerate(client.events(after), 1):
                print(json.dumps(event) if as_json else _line(event), flush=True)
                if number == limit:
                    return
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _line(event: Json) -> str:
    data = event["data"]
    shown = {name: value for name, value in data.items() if name not in ("seq", "vm", "vcpu", "t_ns")}
    if event["event"] == "snapshot":
        shown = {"vcpus": len(data.get("vcpus", ()))}
    who = "-" if data.get("vcpu") is None else f"vcpu {data['vcpu']}"
    rest = " ".join(f"{name}={value}" for name, value in shown.items())
    return f"{data.get('seq', '-'):>8} {who:>9} {event['event']:<20} {rest}"


def trace(
    format: Annotated[str, typer.Option(help="perfetto, chrome, ftrace or script.")] = "chrome",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; standard output otherwise.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
) -> None:
    """Write the recorded past as a file that other tools open."""
    with connected(url, token, uds, vm) as client:
        data = client.trace(format)
    if output is None:
        sys.stdout.buffer.write(data)
    else:
        output.write_bytes(data)


def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 0.5,
    count: Annotated[int | None, typer.Option(help="Stop after so many looks.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """A live table of the VM's vCPUs."""
    from rich.live import Live

    with connected(url, token, uds, vm) as client:
        if as_json:
            print(json.dumps(client.vcpus()))
            return
        try:
            with Live(vcpu_table(client.vcpus()["vcpus"]), console=console(), auto_refresh=False) as live:
                looks = 1
                while looks != count:
                    time.sleep(interval)
                    live.update(vcpu_table(client.vcpus()["vcpus"]), refresh=True)
                    looks += 1
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def console() -> Any:
    """The terminal, or a file wide enough for the tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def vcpu_table(vcpus: Sequence[Json]) -> Any:
    """VCPUs as a table; the state is a glyph and a word, never a colour alone."""
    from rich.table import Table

    table = Table()
    for heading in ("vcpu", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mp_state", "exit reason", "thread", "requests"):
        table.add_column(heading)
    for heading in ("runs", "exits", "EINTR", "spins"):
        table.add_column(heading, justify="right")
    for vcpu in vcpus:
        thread, counters = vcpu["thread"], vcpu["counters"]
        table.add_row(
            str(vcpu["id"]),
            f"{GLYPHS.get(vcpu['state'], '?')} {vcpu['state']}",
            vcpu["mp_state"],
            vcpu["exit_reason"].removeprefix("KVM_EXIT_"),
            thread["behaviour"] if thread else "-",
            " ".join(name.removeprefix("KVM_REQ_") for name in vcpu["requests"]) or "-",
            *(str(counters[name]) for name in ("runs", "exits", "eintr", "spins")),
        )
    return table
