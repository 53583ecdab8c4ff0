"""One door for state: what is accepted comes back; and the harness that says so finds the faults it was made for."""

from typing import Any

import pytest

from kickstand.api.shapes import vms as shapes
from kickstand.core.variants import holds
from kickstand.guests.script import ScriptGuest
from tests.journal import doors
from tests.long import either

pytestmark = pytest.mark.slow  # lives and crashes


def test_random_accepted_calls_are_there_after_a_crash():
    lives = either(2, 30)
    counts = doors.run(lives)
    assert counts["lives"] == lives
    assert counts["accepted"] > 20


def test_a_call_that_is_repeated_without_end_leaves_nothing_that_cannot_be_read():
    counts = doors.flood()
    assert (counts["lives"], counts["accepted"]) == (1, len(doors.FLOODS))


@pytest.fixture
def anything_for_switches():
    """The field is of type Any again."""
    field = shapes.CreateVm.model_fields["switches"]
    kept = field.annotation
    field.annotation = dict[str, Any]
    shapes.CreateVm.model_rebuild(force=True)
    yield
    field.annotation = kept
    shapes.CreateVm.model_rebuild(force=True)


def test_a_field_of_any_type_is_found(anything_for_switches, monkeypatch):
    monkeypatch.setattr(shapes.CreateVm, "options", dict)
    with pytest.raises(AssertionError):
        doors.run(20, only="/vms")


def test_a_limit_that_only_one_side_knows_is_found(monkeypatch):
    monkeypatch.setattr(holds, "MOST_HOLDS", 1 << 20)
    with pytest.raises(AssertionError):
        doors.flood()


def test_a_register_that_takes_what_nobody_can_read_is_found(monkeypatch):
    monkeypatch.setattr(ScriptGuest, "set_special_registers", lambda guest, changes: guest.special.update(changes))
    with pytest.raises(AssertionError):
        doors.run(40, only="/script")
