"""What goes wrong, in one line: ``kickstand: ...`` for people, a JSON object under ``--json``; and the exit status.

0 done; 1 it failed, or the answer is no; 2 the command line is wrong; 130 interrupted. ``docs/cli.md`` says the same.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.exceptions import TyperException

DONE, FAILED, USAGE = 0, 1, 2


class Trouble(Exception):
    """A command ends with this line and this exit status; ``problem`` is what the server said, if it did."""

    def __init__(self, message: str, *, status: int = FAILED, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


def refused(problem: Mapping[str, Any]) -> Trouble:
    """A problem of the server as one line: its errno and every field that it complains of."""
    detail = problem.get("detail") or problem.get("title") or "no reason given"
    messages = [str(entry.get("message")) for entry in problem.get("errors") or ()]
    told = messages if detail in messages else [detail, *messages]
    return Trouble(f"{problem.get('errno') or problem.get('status')}: {'; '.join(told)}", problem=problem)


@contextmanager
def refusals(*kinds: type[Exception], status: int = FAILED) -> Generator[None, None, None]:
    """Errors of these kinds are the user's to read, in one line."""
    try:
        yield
    except kinds as error:
        raise Trouble(str(error), status=status) from None


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit status. Nothing is ever printed as a traceback that is a user's to mend."""
    try:
        status = app(list(arguments), prog_name="kickstand", standalone_mode=False)
    except TyperException as error:
        if "\n" in error.format_message():  # nothing was asked for: what there is
            print(error.format_message())
            return USAGE
        trouble = Trouble(_usage(error), status=error.exit_code)
    except typer.Abort:
        trouble = Trouble("interrupted")
    except Trouble as error:
        trouble = error
    except BrokenPipeError:  # whoever read has seen enough, and got what was asked for
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        trouble = Trouble(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    else:
        return status if isinstance(status, int) else 0
    tell(trouble, as_json="--json" in arguments)
    return trouble.status


def tell(trouble: Trouble, *, as_json: bool) -> None:
    """Print what went wrong on standard error."""
    text = " ".join(re.sub(r"\[Errno -?\d+\] ", "", str(trouble)).split())
    if as_json:
        told = {"error": text, "status": trouble.status}
        text = json.dumps(told if trouble.problem is None else {**told, "problem": trouble.problem})
    print(text if as_json else f"kickstand: {text}", file=sys.stderr)


def _usage(error: TyperException) -> str:
    """What is wrong with the command line, and where its options are told."""
    text = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text}; see '{context.command_path} -h'"
