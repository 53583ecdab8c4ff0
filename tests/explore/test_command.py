"""``kickstand explore``: what it prints and how it ends; campaigns on executors; sampling."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from app.explore.campaign import explore, matrix, process_pool
from app.explore.command import Options, print_ledger, replay_one, run

pytestmark = pytest.mark.slow


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def printed(console):
    return console.file.getvalue()


def test_a_violated_cell_ends_with_1_and_shows_its_columns_and_token(console):
    assert (
        run(Options(variants=("sticky",), behaviours=("well",), properties=("lost_exit", "missing_slot")), console) == 1
    )
    text = printed(console)
    assert "=> lost_exit is violated" in text
    token = text.split("--replay ")[1].split()[0]
    assert replay_one(token, console) == 1
    assert "confirmed on the shipped runtime: lost_exit is violated" in printed(console)


def test_cells_that_hold_end_with_0_and_the_glyph_says_so_without_colour(console):
    assert run(Options(variants=("holds",), behaviours=("well",), properties=("lost_exit",)), console) == 0
    assert "✓" in printed(console)
    assert "\x1b[" not in printed(console)


def test_json_is_the_contracts(console):
    run(Options(variants=("holds",), behaviours=("careless",), properties=("progress",), json=True), console)
    (cell,) = json.loads(printed(console))["cells"]
    assert cell["verdict"] == "holds"
    assert cell["fairness"] == "weak"
    assert cell["token"] is None


def test_matrix_has_one_and_two_vcpus(console):
    run(Options(variants=("none",), behaviours=("well",), properties=("closed_window",), matrix=True), console)
    assert "merge, well, 1 vCPU, 1 VMM" in printed(console)
    assert "merge, well, 2 vCPUs, 1 VMM" in printed(console)


@pytest.mark.parametrize("options", [Options(scenario="nothing"), Options(variants=("nobody",)), Options(vcpus=9)])
def test_wrong_usage_ends_with_2_and_one_line(console, options):
    assert run(options, console) == 2
    assert printed(console).count("\n") == 1


def test_a_token_that_is_none_ends_with_2(console):
    assert replay_one("ks1:x", console) == 2


def test_perfetto_file_is_written(console, tmp_path):
    path = tmp_path / "trace.json"
    run(Options(variants=("none",), behaviours=("well",), properties=("closed_window",), perfetto=path), console)
    assert json.loads(path.read_text())["traceEvents"]


def test_the_ledger_is_printed(console):
    assert print_ledger(console) == 0
    assert "R56" in printed(console)
    assert "D15" in printed(console)


def test_progress_tells_states_and_rate():
    ticks = []
    explore("merge", "sticky", "well", properties=["deadlock"], progress=ticks.append)
    assert ticks[-1].done == ticks[-1].cells == 1
    assert any(tick.search and tick.search.states > 100 and tick.search.rate > 0 for tick in ticks)


@pytest.mark.parametrize("pool", [lambda: ThreadPoolExecutor(1), lambda: process_pool(2)], ids=["threads", "processes"])
def test_an_executor_gives_the_same_answers(pool):
    cells = matrix("merge", ["sticky", "none"], ["well"], properties=["lost_exit", "closed_window"])
    here = [(verdict.variant, verdict.property, verdict.verdict, verdict.states) for verdict in cells.run()]
    with pool() as executor:
        there = [
            (verdict.variant, verdict.property, verdict.verdict, verdict.states) for verdict in cells.run(executor)
        ]
    assert there == here


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_random_schedules_find_and_never_prove(strategy):
    found = {verdict.property: verdict for verdict in explore("merge", "none", "well", strategy=strategy, seed=7)}
    assert found["closed_window"].verdict == "violated"
    assert found["deadlock"].verdict == "undecided"
    assert "prove nothing" in found["deadlock"].bound
    again = {verdict.property: verdict for verdict in explore("merge", "none", "well", strategy=strategy, seed=7)}
    assert again["closed_window"].counterexample.token == found["closed_window"].counterexample.token
