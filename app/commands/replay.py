"""``kickstand replay``: ioctl scripts played again, and every recorded answer compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kickstand.commands.client.connection import AsJson, Token, TokenFile, token_of
from kickstand.commands.client.options import Engine, OneOf
from kickstand.commands.client.progress import replay_bar
from kickstand.commands.client.trouble import refusals


def replay(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Scripts (.json, .jsonl, .gz), folders of them, or -.")
    ],
    engine: Annotated[Engine | None, typer.Option(help="Play on this; what a script says, else x86.")] = None,
    variant: Annotated[str | None, typer.Option(metavar="VARIANT", help=f"Play under this variant. {OneOf}")] = None,
    against: Annotated[
        Engine | None, typer.Option(help="Compare with this engine's answers, not the recorded ones.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the answers of operations that have none recorded.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Record into this file, not in place.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Play on this server instead of in this process.")
    ] = None,
    token: Token = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Play ioctl scripts and compare every recorded answer."""
    from kickstand.core.errors import KvmError
    from kickstand.scripts.language.errors import ScriptError
    from kickstand.scripts.play.http_player import ServerError
    from kickstand.scripts.record import record_into
    from kickstand.scripts.replay import replay as play

    if output is not None and not record:
        raise typer.BadParameter("-o goes with --record")
    with (
        refusals(ScriptError, ServerError, KvmError),
        replay_bar(enabled=not as_json and sys.stderr.isatty()) as (started, progress),
    ):
        summary = play(paths, engine=engine, variant=variant, url=url, token=token_of(token, token_file),
                       against=against, started=started, progress=progress)  # fmt: skip
        if record:
            record_into(summary.played, output)
    print(json.dumps(summary.as_json()) if as_json else "\n".join(summary.lines(answers=not record)))
    if summary.failed:
        raise typer.Exit(1)
