"""The entry point of ``kickstand``, and ``python -m kickstand``."""

import sys


def main() -> None:
    """Run the command line; ``exec``, whose arguments are mostly its program's, without loading the rest of it."""
    if sys.argv[1:2] == ["exec"]:
        from kickstand.commands.program import run  # noqa: PLC0415

        sys.exit(run(sys.argv[2:]))
    from kickstand.cli import main as command_line  # noqa: PLC0415

    command_line()


if __name__ == "__main__":
    main()
