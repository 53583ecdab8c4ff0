"""The event log: one order, a bounded past, and records that are made when somebody reads."""

from __future__ import annotations

from itertools import count

import pytest

from kickstand.runtime.events import EventLog


def log_of(events, capacity=4):
    ticks = count(100, 10)
    log = EventLog(capacity, clock=lambda: next(ticks))
    for number in range(1, events + 1):
        log.emit("vm", "kvm_test", number % 3, {"n": number})
    return log


def numbers(records):
    return [record.seq for record in records]


def test_events_come_back_as_they_were_told():
    records, lost = log_of(2).since(0)
    assert lost == 0
    assert [(r.seq, r.t_ns, r.vm, r.vcpu, r.name, r.fields) for r in records] == [
        (1, 10, "vm", 1, "kvm_test", {"n": 1}),
        (2, 20, "vm", 2, "kvm_test", {"n": 2}),
    ]
    assert records[0].data == '{"seq":1,"vm":"vm","vcpu":1,"t_ns":10,"n":1}'


@pytest.mark.parametrize(
    ("events", "after", "limit", "seen", "lost"),
    [
        (3, 0, None, [1, 2, 3], 0),
        (3, 2, None, [3], 0),
        (3, 3, None, [], 0),
        (3, 9, None, [], 0),
        (3, 0, 2, [1, 2], 0),
        (4, 0, None, [1, 2, 3, 4], 0),
        (9, 0, None, [6, 7, 8, 9], 5),
        (9, 4, None, [6, 7, 8, 9], 1),
        (9, 5, 1, [6], 0),
        (9, 7, None, [8, 9], 0),
        (9, 1, 2, [6, 7], 4),
    ],
)
def test_a_reader_gets_what_follows_and_the_number_of_what_is_gone(events, after, limit, seen, lost):
    records, missing = log_of(events).since(after, limit)
    assert (numbers(records), missing) == (seen, lost)


def test_a_record_is_made_once_and_goes_with_its_place_in_the_ring():
    log = log_of(4)
    first, again = log.since(0)[0], log.since(0)[0]
    assert all(one is other for one, other in zip(first, again, strict=True))
    log.emit("vm", "kvm_test", None, {"n": 5})
    newest, lost = log.since(0)
    assert (numbers(newest), lost) == ([2, 3, 4, 5], 1)
    assert newest[-1].fields == {"n": 5}
    assert first[0].fields == {"n": 1}


def test_numbers_go_on_after_a_restart_and_nothing_before_it_is_made_up():
    ticks = count(0, 10)
    log = EventLog(4, clock=lambda: next(ticks))
    log.go_on("old", 41, 1_000)
    assert (log.kept, log.since(40)) == (0, ([], 1))
    assert log.emit("vm", "kvm_test", None, {}) == 42
    records, lost = log.since(0)
    assert (numbers(records), lost, log.kept) == ([42], 41, 1)
    assert records[0].t_ns > 1_000


def test_slot_changes_kicks_and_holes_outlast_a_flood_of_what_is_told_often():
    log = EventLog(4, lasting=2)
    told = ["kvm_memslot", "kvm_mmio", "kvm_kick_all", "kvm_mmio", "kvm_mmio", "kvm_resume_all", *["vcpu_state"] * 9]
    for name in told:
        log.emit("vm", name, None, {})
    assert [(record.seq, record.name) for record in log.lasting(0, log.seq)] == [
        (3, "kvm_kick_all"), (4, "kvm_mmio"), (5, "kvm_mmio"), (6, "kvm_resume_all")
    ]  # fmt: skip
    assert numbers(log.lasting(3, 5)) == [4, 5]
    assert numbers(log.since(0)[0]) == [12, 13, 14, 15]


def test_the_log_says_from_where_on_nothing_is_missing():
    log = EventLog(4, lasting=2)
    log.go_on("old", 41, 0)
    for name in ("kvm_kick_all", "kvm_mmio", "kvm_mmio", *["vcpu_state"] * 9):
        log.emit("vm", name, None, {})
    assert log.whole_since() == log.whole_since(frozenset({"vcpu_state", "kvm_kick_all"})) == 50
    assert log.whole_since(frozenset({"kvm_kick_all"})) == 42
    assert log.whole_since(frozenset({"kvm_kick_all", "kvm_mmio"})) == 43


def test_a_sleeper_is_woken_once_by_the_next_event():
    log, woken = log_of(1), []
    log.wake_at_next(lambda: woken.append(log.seq))
    log.emit("vm", "kvm_test", None, {})
    log.emit("vm", "kvm_test", None, {})
    assert woken == [2]
