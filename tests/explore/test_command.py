"""``kickstand explore``: what it prints and how it ends; campaigns on executors; sampling."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from kickstand.explore.command import Options, Refused, print_ledger, replay_one, run
from kickstand.explore.matrix import Matrix, explore, process_pool
from kickstand.explore.question import Question

pytestmark = pytest.mark.slow


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def asked(variant, behaviour, *properties, vcpus=(1,), **how):
    return Options(Question("merge", (variant,), (behaviour,), vcpus, properties=properties), **how)


def printed(console):
    return console.file.getvalue()


def test_a_violated_cell_ends_with_1_and_shows_its_columns_and_token(console):
    assert run(asked("sticky", "well", "lost_exit", "missing_slot"), console) == 1
    text = printed(console)
    assert "=> lost_exit is violated" in text
    token = text.split("--replay ")[1].split()[0]
    assert replay_one(token, console) == 1
    assert "confirmed on the shipped runtime: lost_exit is violated" in printed(console)


def test_cells_that_hold_end_with_0_and_the_glyph_says_so_without_colour(console):
    assert run(asked("holds", "well", "lost_exit"), console) == 0
    assert "✓" in printed(console)
    assert "\x1b[" not in printed(console)


def test_json_is_the_contracts(console):
    run(asked("holds", "careless", "progress", json=True), console)
    (cell,) = json.loads(printed(console))["cells"]
    assert cell["verdict"] == "holds"
    assert cell["fairness"] == "weak"
    assert cell["token"] is None


def test_matrix_has_one_and_two_vcpus(console):
    run(asked("none", "well", "closed_window", vcpus=(1, 2), matrix=True), console)
    assert "merge, well, 1 vCPU, 1 VMM" in printed(console)
    assert "merge, well, 2 vCPUs, 1 VMM" in printed(console)


@pytest.mark.parametrize("question", [Question("nothing"), Question(variants=("nobody",)), Question(vcpus=(9,))])
def test_wrong_usage_is_refused_in_one_line(console, question):
    with pytest.raises(Refused) as caught:
        run(Options(question), console)
    assert "\n" not in str(caught.value)
    assert printed(console) == ""


def test_a_token_that_is_none_is_refused(console):
    with pytest.raises(Refused):
        replay_one("ks2:x", console)


def test_tables_fit_into_80_columns_and_what_holds_everywhere_has_no_column(console):
    everything = Question("merge", ("none", "clear_before_up_write", "check_not_test"), ("careless",))
    run(Options(everything, matrix=True), console)
    text = printed(console)
    assert max(map(len, text.splitlines())) <= 80
    assert "a missing_slot" in text
    assert re.search(r"every variant holds .*progress", text)
    assert "…" not in text


def test_a_few_properties_are_named_in_full(console):
    run(asked("sticky", "well", "lost_exit", "deadlock", matrix=True), console)
    assert re.search(r"^variant +lost_exit +deadlock +states$", printed(console), re.MULTILINE)


def test_perfetto_file_is_written(console, tmp_path):
    path = tmp_path / "trace.json"
    run(asked("none", "well", "closed_window", perfetto=path), console)
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
    cells = Matrix(Question("merge", ("sticky", "none"), ("well",), properties=("lost_exit", "closed_window")))
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
