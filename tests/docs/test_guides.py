"""What the two guides say is what happens: their files run, find the planted bug, and the tokens replay."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kickstand.core.variants import Variant
from kickstand.explore.search.properties import PROPERTIES
from kickstand.explore.world.scenarios.files import load
from kickstand.explore.world.scenarios.operations import OPERATIONS

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.slow


def block(page, language):
    return re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[1]


def kickstand(folder, *words):
    command = [sys.executable, "-m", "kickstand", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def asked(page):
    return block(page, "sh").split()[1:]


def test_the_scenario_of_the_guide_finds_its_planted_bug_and_the_token_replays_it_without_the_file(tmp_path):
    file = tmp_path / "grow_too_late.yaml"
    file.write_text(block("scenarios.md", "yaml"))
    done = kickstand(tmp_path, *asked("scenarios.md"))
    assert done.returncode == 1, done.stderr
    assert "missing_slot is violated" in done.stdout
    file.unlink()
    again = kickstand(tmp_path, "explore", "--replay", done.stdout.split("--replay ")[1].split()[0])
    assert again.returncode == 1, again.stderr
    assert "confirmed on the shipped runtime: missing_slot is violated" in again.stdout


def test_the_scenario_holds_with_resume_at_the_end_as_the_guide_says(tmp_path):
    resume = "      - {op: resume}\n"
    text = block("scenarios.md", "yaml").replace(resume, "") + resume
    (tmp_path / "grow_too_late.yaml").write_text(text)
    assert kickstand(tmp_path, *asked("scenarios.md")).returncode == 0


def test_the_variant_of_the_guide_hangs_the_kick_and_its_token_replays_with_the_file(tmp_path):
    (tmp_path / "deep_sleep.py").write_text(block("variants.md", "python"))
    done = kickstand(tmp_path, *asked("variants.md"))
    assert done.returncode == 1, done.stderr
    assert "kick_returns is violated" in done.stdout
    token = done.stdout.split("--replay ")[1].split()[0]
    again = kickstand(tmp_path, "explore", "--variant-module", "deep_sleep.py", "--replay", token)
    assert again.returncode == 1, again.stderr


def test_the_guides_name_every_operation_and_every_hook(tmp_path):
    scenarios, variants = ((DOCS / page).read_text() for page in ("scenarios.md", "variants.md"))
    assert all(f"`{name}`" in scenarios for name in OPERATIONS)
    hooks = {name for name, value in vars(Variant).items() if hasattr(value, "__code__") and not name.startswith("_")}
    assert all(name in variants for name in hooks - {"saved", "load"})


def test_the_example_is_a_scenario(tmp_path):
    (tmp_path / "example.yaml").write_text(block("scenarios.md", "yaml"))
    assert load(str(tmp_path / "example.yaml")).name == "grow_too_late"


def test_the_page_says_of_each_property_what_the_explorer_asks():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (\w*) ?\|$", (DOCS / "explorer.md").read_text(), re.MULTILINE)
    known = [(item.name, item.summary, "" if item.safety else item.fairness) for item in PROPERTIES.values()]
    assert rows == known
