"""What was measured before, in ``baseline.json``, and which rows are worse now by more than their spread.

Ratios travel between machines as times do not; still the file is of one machine, so a row counts as worse only if even
the better quartile of now is behind the worse quartile of then, by a tenth at least. ``run.py --keep`` writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "baseline.json"
MARGIN = 0.1
Row = Mapping[str, Any]


def key(row: Row) -> str:
    """What names a row."""
    return f"{row['file']}: {row['row']}"


def smaller_is_better(row: Row) -> bool:
    """As its goal says; a row without one is a cost, unless its name says how many times faster."""
    if row["goal"]:
        return row["goal"]["sign"] == "<="
    return "faster" not in row["row"]


def keep(rows: Iterable[Row], file: Path = FILE) -> None:
    """Write the measured rows as the new baseline; those that were skipped keep what they had."""
    kept = load(file) | {
        key(row): {name: row[name] for name in ("ratio", "low", "high", "unit")}
        for row in rows
        if row["ratio"] is not None
    }
    file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def load(file: Path = FILE) -> dict[str, Row]:
    """The baseline; empty if there is none."""
    if not file.exists():
        return {}
    kept: dict[str, Row] = json.loads(file.read_text())
    return kept


def worse(rows: Iterable[Row], before: Mapping[str, Row]) -> list[str]:
    """A sentence for each row that got worse."""
    told = []
    for row in rows:
        then = before.get(key(row))
        if then is None or row["ratio"] is None:
            continue
        if smaller_is_better(row):
            behind = row["low"] > then["high"] * (1 + MARGIN)
        else:
            behind = row["high"] < then["low"] * (1 - MARGIN)
        if behind:
            unit = row["unit"]
            told.append(f"worse than before: {key(row)}: {row['ratio']:.3g} {unit}, was {then['ratio']:.3g} {unit}")
    return told
