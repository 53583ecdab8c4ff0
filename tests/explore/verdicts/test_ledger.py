"""The requirements ledger says the truth: each test exists, each cell has the verdict it claims."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from kickstand.explore.matrix import explore
from kickstand.explore.reports.ledger import ByTest, OutOfScope, Shows
from kickstand.explore.reports.requirements import LEDGER

ROOT = Path(__file__).parents[3]
CLAIMS = defaultdict(dict)
for entry in LEDGER:
    for item in entry.shown_by:
        if isinstance(item, Shows):
            CLAIMS[item.scenario, item.variant, item.behaviour, item.vmms][item.property] = item.verdict


def test_every_requirement_and_every_defect_has_an_entry():
    assert [entry.id for entry in LEDGER] == [f"R{n}" for n in range(1, 57)] + [f"D{n}" for n in range(1, 16)]
    assert all(entry.shown_by for entry in LEDGER)


def test_every_test_that_is_named_exists():
    for entry in LEDGER:
        for item in entry.shown_by:
            if isinstance(item, ByTest):
                assert re.search(rf"def {item.name}\(", (ROOT / item.path).read_text()), f"{entry.id}: {item}"


def test_what_is_out_of_scope_says_why():
    assert all(len(item.reason) > 4 for entry in LEDGER for item in entry.shown_by if isinstance(item, OutOfScope))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CLAIMS, ids=lambda cell: "-".join(map(str, cell)))
def test_each_cell_of_the_ledger_has_its_verdict(cell):
    scenario, variant, behaviour, vmms = cell
    claims = CLAIMS[cell]
    found = explore(scenario, variant, behaviour, 1, vmms, properties=list(claims))
    assert {verdict.property: verdict.verdict for verdict in found} == claims
