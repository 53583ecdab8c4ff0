"""Store buffers: each barrier of the kernel is needed, none that is there is missed, and what is found replays."""

import pytest

from kickstand.core.variants import variants
from kickstand.explore.command import Options, Refused, run
from kickstand.explore.crosscheck import differences
from kickstand.explore.evidence.tokens import TokenError
from kickstand.explore.matrix import explore, replay_token
from kickstand.explore.question import Question
from kickstand.explore.search.properties import PROPERTIES
from tests.explore.cells import decided
from tests.long import either

pytestmark = pytest.mark.slow
SOME = ("sticky", "signal")
MODE, TASK = "tso-smp_mb__after_srcu_read_unlock", "tso-set_current_state"


def verdicts(variant, behaviour, memory, *properties):
    found = explore("merge", variant, behaviour, properties=properties, memory=memory)
    return {item.property: item for item in found}


def answers(found):
    return {name: str(item.verdict) for name, item in found.items()}


@pytest.mark.parametrize("behaviour", ["well", "careless"])
@pytest.mark.parametrize("variant", either(SOME, tuple(variants())))
def test_with_all_barriers_every_verdict_is_as_under_sequential_consistency(variant, behaviour):
    buffered = decided("merge", variant, behaviour, 1, 1, "tso")
    assert answers(buffered) == answers(decided("merge", variant, behaviour))


@pytest.mark.parametrize("memory", [MODE, TASK])
@pytest.mark.parametrize("variant", ["sticky", "holds"])
def test_without_one_of_them_kick_does_not_return_and_the_token_replays(variant, memory):
    found = verdicts(variant, "well", memory, "kick_returns")["kick_returns"]
    assert found.verdict == "violated"
    text = found.counterexample.text()
    assert "the oldest store reaches memory" in text
    assert f".{memory}:" in found.counterexample.token
    replay_token(found.counterexample.token)


def test_what_falls_only_by_a_store_buffer_does_not_replay_without():
    found = verdicts("sticky", "well", MODE, "kick_returns")["kick_returns"]
    with pytest.raises(TokenError, match="memory 'arm64'"):
        replay_token(found.counterexample.token.replace(f".{MODE}:", ".arm64:"))


def test_a_sleeper_that_looks_too_early_is_a_deadlock():
    assert verdicts("sticky", "well", TASK, "deadlock")["deadlock"].verdict == "violated"
    assert verdicts("sticky", "well", MODE, "deadlock")["deadlock"].verdict == "holds"


@pytest.mark.parametrize("memory", either([MODE], ["tso", MODE]))
def test_reductions_decide_as_the_full_search(memory):
    asked = ("deadlock", "kick_returns", "lost_exit", "missing_slot")
    question = Question("merge", ("sticky",), ("well",), properties=asked, memory=memory)
    assert list(differences(question, unmerged=True)) == []


def test_an_unknown_memory_or_barrier_is_refused():
    with pytest.raises(Refused, match="'tso-mfence' is none of sc, tso, tso-smp_mb__after_srcu_read_unlock"):
        run(Options(Question(variants=("sticky",), behaviours=("well",), memory="tso-mfence")))


def test_json_says_which_memory_it_was():
    found = verdicts("none", "well", "tso", "deadlock")["deadlock"]
    assert found.json()["memory"] == "tso"
    assert "memory" not in verdicts("none", "well", "sc", "deadlock")["deadlock"].json()
    assert set(PROPERTIES) >= {"deadlock"}
