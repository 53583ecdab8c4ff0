"""The six walks of docs/architecture.md can be walked: each file is there, and has what is to be looked for in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
WALKS = PAGE.split("## Six walks\n")[1].split("\n## ")[0].split("\n### ")[1:]
STEPS = [(path, name) for walk in WALKS for path, name in re.findall(r"^\d+\. `([^`]+)`: `(\w+)`", walk, re.MULTILINE)]


def test_there_are_six_walks_of_several_steps():
    assert len(WALKS) == 6
    assert all(walk.count("\n1. ") == 1 and walk.count(". `app/") >= 5 for walk in WALKS)
    assert len(STEPS) == PAGE.split("## Six walks\n")[1].split("\n## ")[0].count(". `app/")


@pytest.mark.parametrize(("path", "name"), STEPS)
def test_a_step_leads_to_what_it_names(path, name):
    text = (ROOT / path).read_text()
    pattern = (
        rf"^\s*(?:async )?(?:def|class) {name}\b"
        if path.endswith(".py")
        else rf"^\s*(?:export )?(?:function )?{name}\("
    )
    assert re.search(pattern, text, re.MULTILINE), f"{path} has no {name}"


def test_what_is_to_be_added_to_is_in_the_file_that_is_named():
    named = re.findall(r"`([\w/]+\.\w+)`\s\(`(\w+)`\)", PAGE)
    assert len(named) >= 9
    assert [(path, name) for path, name in named if not re.search(rf"\b{name}\b", (ROOT / path).read_text())] == []


def test_every_path_that_is_named_exists():
    named = set(re.findall(r"`((?:app|tests|benchmarks|docs)/[\w/.-]+)`", PAGE))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_floors_are_those_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["containers"] == ["kickstand"])
    floors = {name for layer in layers for name in re.findall(r"\w+", layer)}
    table = PAGE.split("| floor |")[1].split("\n\n")[0]
    named = set(re.findall(r"`app/(\w+)`", table))
    assert named - {"dashboard"} <= floors
    assert {"core", "guests", "runtime", "explore", "journal", "scripts", "traces", "exec", "api"} <= named
