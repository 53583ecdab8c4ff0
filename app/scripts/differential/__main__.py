"""Emulator against the real /dev/kvm, on generated scripts."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kickstand.core.errors import KvmError
from kickstand.scripts.differential.campaign import Report, campaign
from kickstand.scripts.differential.mutate import Mutations
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.reader import load


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no difference that is no known quirk; 1: there is one; 2: the device cannot be used."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m kickstand.scripts.differential", description=about)
    parser.add_argument("--count", type=int, default=200, help="scripts to play")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--stop-after", type=int, default=10, help="unexplained differences after which to end")
    parser.add_argument("--out", type=Path, help="write the differences' scripts to this file (.jsonl)")
    parser.add_argument(
        "--mutate", type=Path, nargs="+", help="change the scripts of these folders instead of making some"
    )
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.count)
    try:
        mutations = None if options.mutate is None else Mutations(load(options.mutate))
        report = asyncio.run(campaign(seeds, options.stop_after, _show, mutations))
    except (KvmError, ScriptError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = sys.stdout
    for finding in report.unexplained:
        out.write("\n".join(finding.lines()) + "\n")
    if options.out is not None:
        options.out.write_text("".join(json.dumps(finding.as_trace()) + "\n" for finding in report.unexplained))
    seen = Counter(finding.quirk.name for finding in report.findings if finding.quirk is not None)
    quirks = ", ".join(f"{name} {times}" for name, times in sorted(seen.items())) or "none"
    alone = f" (on one side only: {report.spun_alone})" if report.spun_alone else ""
    spun = f", {len(report.spun)} spun{alone}" if report.spun else ""
    out.write(f"{report.scripts} scripts, {report.operations} operations{spun}, known quirks seen: {quirks}\n")
    out.write(f"{len(report.unexplained)} unexplained differences\n")
    return bool(report.unexplained)


def _show(report: Report) -> None:
    if report.scripts % 100 == 0:
        sys.stderr.write(f"{report.scripts} scripts, {len(report.unexplained)} unexplained differences\n")


if __name__ == "__main__":
    sys.exit(main())
