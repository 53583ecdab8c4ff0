"""`make bench` says what got worse, and only that."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "harness" / "baseline.py"


@pytest.fixture(scope="module")
def baseline():
    spec = importlib.util.spec_from_file_location("baseline", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(ratio, spread=0.05, sign="<=", name="a kick"):
    return {"file": "kick", "row": name, "ratio": ratio, "low": ratio - spread, "high": ratio + spread, "unit": "x",
            "goal": sign and {"sign": sign, "bound": 3}}  # fmt: skip


def test_a_row_is_worse_only_beyond_both_spreads_and_in_the_direction_of_its_goal(baseline, tmp_path):
    file = tmp_path / "baseline.json"
    baseline.keep([row(1.0)], file)
    before = baseline.load(file)
    assert baseline.worse([row(1.1)], before) == []
    assert baseline.worse([row(0.5)], before) == []
    assert baseline.worse([row(1.5)], before) == ["worse than before: kick: a kick: 1.5 x, was 1 x"]
    assert baseline.worse([row(0.5, sign=">=")], before)
    assert not baseline.worse([row(1.5, sign=">=")], before)
    assert not baseline.worse([row(9, name="another")], before)


def test_what_was_skipped_keeps_what_it_had(baseline, tmp_path):
    file = tmp_path / "baseline.json"
    baseline.keep([row(1.0), row(2.0, name="b")], file)
    baseline.keep([row(1.5), {**row(2.0, name="b"), "ratio": None}], file)
    assert {name: kept["ratio"] for name, kept in json.loads(file.read_text()).items()} == {
        "kick: a kick": 1.5,
        "kick: b": 2.0,
    }


def test_the_baseline_names_rows_of_files_that_there_are(baseline):
    files = {name.partition(":")[0] for name in baseline.load()}
    assert files <= {path.stem for path in FILE.parents[1].glob("*.py")}
