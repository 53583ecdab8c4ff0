"""The command line of ``kickstand exec``. What comes after ``--`` is the program's alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

FAILED = 125  # exec itself failed: every other status is the program's
ANY_PORT = "127.0.0.1:0"


class Parser(argparse.ArgumentParser):
    """A parser whose errors end with ``FAILED``."""

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong with the command line."""
        self.exit(FAILED, f"kickstand exec: {message}; see 'kickstand exec -h'\n")


def parser() -> Parser:
    """The options of design section 4."""
    made = Parser(
        prog="kickstand exec",
        description="Run an unmodified program whose /dev/kvm is the emulator. Its exit status is the program's, or "
        f"{FAILED} if exec itself fails. This is no sandbox: everything but /dev/kvm is the kernel's, as ever.",
    )
    made.add_argument(
        "--variant", metavar="NAME", help="what 0xAED2 and 0xAED3 do (default: nothing, or what --protect needs)"
    )
    made.add_argument("--variant-module", type=Path, metavar="FILE", help="a Python file with a variant of your own")
    made.add_argument(
        "--mode",
        default="precise",
        choices=("precise", "fast", "auto"),
        help="of the x86 engine; auto leaves it to exec, which takes precise (default: precise)",
    )
    made.add_argument(
        "--protect", default="none", choices=("none", "hold", "kick"),
        help="protect slot updates of programs that know no kick: hold vCPUs, or kick them out",
    )  # fmt: skip
    made.add_argument(
        "--memory", default="share", choices=("share", "copy"), help="share the program's pages, or copy them (slow)"
    )
    made.add_argument(
        "--serve",
        nargs="?",
        const=ANY_PORT,
        metavar="HOST:PORT",
        help="its VMs over HTTP too, on a free port by default",
    )
    made.add_argument("--trace", type=Path, metavar="FILE", help="write the run as an ioctl script that replays")
    made.add_argument("--summary", action="store_true", help="at the end, print what was asked for, by count")
    made.add_argument("--summary-json", type=Path, metavar="FILE", help="the same into a file, as JSON")
    made.add_argument("program", help="the program; put -- before it if it has options of its own")
    made.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def split(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the program's command line."""
    before, after = list(arguments), list[str]()
    if "--" in before:
        at = before.index("--")
        before, after = before[:at], before[at + 1 :]
        if not after:
            parser().error("there is no program after --")
        options = parser().parse_args([*before, "--", after[0]])
        return options, after
    options = parser().parse_args(before)
    return options, [options.program, *options.arguments]
