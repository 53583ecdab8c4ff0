"""Run the benchmarks one after the other and print one table; exit 1 if one of them fails to run.

    python benchmarks/run.py [--json] [--output FILE] [--keep] [NAME]...

After the table it names the rows that are worse than in ``baseline.json`` by more than their spread; ``--keep`` makes
this run the baseline. ``--json`` prints the rows as JSON instead, ``--output`` writes them to a file as well; NAMEs are
files without ``.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from harness import Goal, Ratio, table
from harness.baseline import keep, load, worse

HERE = Path(__file__).parent
LIMIT_S = 240  # for one file: a benchmark that hangs must not take the others with it
APART = {"run", "soak"}  # the soak takes ten minutes by itself


def names() -> list[str]:
    """The benchmarks that belong to the table."""
    return sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.stem not in APART)


def rows_of(name: str) -> list[Ratio]:
    """Run one benchmark in a process of its own. ``RuntimeError`` if it fails or prints no rows."""
    # The checkout that this file is in is the one to measure, wherever the package was installed from.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / f"{name}.py"), "--json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        return [Ratio(**{**row, "goal": row["goal"] and Goal(**row["goal"])}) for row in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not ready after {LIMIT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"exit status {error.returncode}\n{error.stderr.strip()}") from None
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"printed no rows: {error}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names(), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", action="store_true", help="what is measured now is what later runs are compared with")
    asked = parser.parse_args()
    files, failures, started = {}, {}, time.monotonic()
    for name in asked.names:
        begun = time.monotonic()
        try:
            files[name] = rows_of(name)
        except RuntimeError as error:
            failures[name] = str(error)
        if not asked.json:
            print(f"== {name} ({time.monotonic() - begun:.0f} s)", flush=True)
            print(f"FAILED: {failures[name]}" if name in failures else table(files[name]), flush=True)
    rows = [{"file": name, **asdict(row)} for name, found in files.items() for row in found]
    verdicts = [row["verdict"].rstrip("?") for row in rows]
    summary = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "seconds": round(time.monotonic() - started, 1),
        "worse": worse(rows, load()),
        **{verdict: verdicts.count(verdict) for verdict in ("met", "missed", "skipped")},
        "failed": failures,
    }
    document = json.dumps({"summary": summary, "rows": rows}, indent=1)
    if asked.keep:
        keep(rows)
    if asked.output:
        asked.output.write_text(document + "\n")
    if asked.json:
        print(document)
    else:
        print("\n".join(summary["worse"]) or "no row is worse than in baseline.json")
        print(
            f"{summary['met']} met, {summary['missed']} missed, {summary['skipped']} skipped, {len(failures)} failed; "
            f"{summary['seconds']} s; '?' marks a verdict within the spread"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
