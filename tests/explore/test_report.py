"""``explore --report DIR``: what would be mailed, and the same as a page."""

import io

import pytest
from rich.console import Console

from kickstand.explore.command import Options, run
from kickstand.explore.evidence.columns import WIDTH
from kickstand.explore.matrix import replay_token
from kickstand.explore.question import Question
from kickstand.explore.reports.report import appendices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "by the command"
    asked = Question("merge", ("none", "holds"), ("well",), properties=("closed_window", "dirty_kept", "deadlock"))
    assert run(Options(asked, report=folder), Console(file=io.StringIO())) == 1
    return folder


def test_the_text_has_the_matrix_the_columns_and_tokens_that_replay(report):
    text = (report / "report.txt").read_text()
    assert "6 questions: 3 holds, 1 violated, 0 undecided, 2 vacuous" in text
    assert "closed_window    none FALLS in 5, holds holds" in text
    assert "dirty_kept       none -, holds -" in text
    assert "=> closed_window is violated" in text
    replay_token(text.split("--replay ")[1].split()[0])


def test_it_fits_a_mail_but_for_commands(report):
    lines = (report / "report.txt").read_text().splitlines()
    assert all(len(line) <= WIDTH for line in lines if "--replay" not in line)


def test_the_page_says_the_same(report):
    page = (report / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "=&gt; closed_window is violated" in page
    assert "<script" not in page


def test_the_appendices_tell_of_barriers_and_of_the_starved_blocker():
    (barriers, told), (starved, shown) = appendices()
    assert barriers.startswith("What store buffers change")
    assert "set_current_state" in told
    assert "kick_returns" in told
    assert "accel-blocker" in starved
    assert ">> repeats for ever" in shown
    assert all(len(line) <= 100 for line in told.splitlines())
