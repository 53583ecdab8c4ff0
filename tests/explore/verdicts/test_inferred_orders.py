"""What `inferred` keeps and breaks depends on the order of DELETE, CREATE and MOVE: docs/variants.md says the same."""

from __future__ import annotations

import json

import pytest

from kickstand.explore.matrix import explore
from tests.long import either

PAGE = 0x1000


def slot(number, page, pages=1):
    return {"op": "set_memory_region", "args": {"slot": number, "gpa": page * PAGE, "size": pages * PAGE}}


D1, D2 = slot(1, 1, 0), slot(2, 2, 0)
HANGS = {"deadlock", "progress", "resume_runs"}
TEARS = {"missing_slot", "spurious_mmio"}
ORDERS = {
    "all deletes first": ([D1, D2, slot(1, 1, 2)], set()),
    "one after the other": ([D1, slot(1, 1), D2, slot(2, 2)], set()),
    "covered piece by piece": ([D1, D2, slot(1, 1), slot(2, 2)], set()),
    "covered by another slot": ([D1, slot(3, 1), D2, slot(1, 2)], set()),
    "gone for good": ([D2], HANGS),
    "moved away and back": ([slot(2, 3), slot(2, 2)], TEARS),
}


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", either(["careless"], ["well", "careless"]))
@pytest.mark.parametrize("order", ORDERS)
def test_the_explorer_says_what_falls(order, behaviour, tmp_path):
    operations, falls = ORDERS[order]
    vm = {"memory_regions": [slot(number, number)["args"] for number in (1, 2)], "program": [["read", 2 * PAGE]]}
    scenario = tmp_path / "order.json"
    scenario.write_text(json.dumps({"name": "order", "vms": [vm], "vmms": [{"operations": operations}]}))
    verdicts = explore(str(scenario), "inferred", behaviour)
    assert {verdict.property for verdict in verdicts if verdict.verdict == "violated"} == falls
    assert not [verdict for verdict in verdicts if verdict.verdict == "undecided"]
