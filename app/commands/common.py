"""What client commands share: where the server is, and how an answer is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.client import DEFAULT_URL, Client, KickstandError

Url = Annotated[str, typer.Option("--url", envvar="KICKSTAND_URL", help="The server.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="KICKSTAND_TOKEN", help="Bearer token.", show_default=False)
]
Uds = Annotated[
    str | None, typer.Option("--uds", envvar="KICKSTAND_UDS", help="Unix socket of the server.", show_default=False)
]
VmName = Annotated[str, typer.Option("--vm", envvar="KICKSTAND_VM", help="The virtual machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

__all__ = ["DEFAULT_URL", "AsJson", "Token", "Uds", "Url", "VmName", "connected", "number", "show"]


@contextmanager
def connected(url: str, token: str | None, uds: str | None, vm: str) -> Generator[Client, None, None]:
    """A client; failures end the command with status 1 and one clear line, usage errors with 2."""
    import httpx

    try:
        with Client(url, vm=vm, token=token, uds=uds) as client:
            yield client
    except KickstandError as error:
        print(f"kickstand: {error}", file=sys.stderr)
        for entry in error.problem.get("errors") or ():
            print(f"  {entry}", file=sys.stderr)
        raise typer.Exit(1) from None
    except httpx.TransportError as error:
        print(f"kickstand: no answer from {uds or url}: {error}. Is 'kickstand serve' running?", file=sys.stderr)
        raise typer.Exit(1) from None


def number(text: str) -> int:
    """Parse an integer, decimal or 0x..."""
    try:
        return int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number") from None


def show(answer: Any, *, as_json: bool) -> None:
    """Print an answer: JSON in one line for machines, else as aligned names and values."""
    if as_json:
        print(json.dumps(answer))
        return
    if not isinstance(answer, dict):
        print(answer)
        return
    width = max((len(name) for name in answer), default=0)
    for name, value in answer.items():
        print(f"{name:<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return "-" if value is None else str(value)
