"""One stream for all tabs, whatever happens to the server or to the tab that reads it."""

import re
from pathlib import Path

import pytest

from tests.browser.browser import eventually, opened, serving, until


def tabs(context, server, number):
    pages = []
    for _ in range(number):
        page = context.new_page()
        opened(page, f"{server.url}#view=overview")
        pages.append(page)
    return pages


def leaders(pages):
    return [page.evaluate("kickstand.live.leads") for page in pages]


def streams(page):
    metrics = page.evaluate("fetch('/metrics').then((answer) => answer.text())")
    return float(re.search(r"^kickstand_streams (.*)$", metrics, re.MULTILINE)[1])


def test_seven_tabs_share_one_stream_and_the_seventh_can_kick(context, server):
    pages = tabs(context, server, 7)
    assert leaders(pages).count(True) == 1
    last = pages[-1]
    last.evaluate("kickstand.runner.story()")
    until(last, "kickstand.vm()?.running === 4")
    last.keyboard.press("k")
    until(last, "kickstand.vm().kicked")
    pages[0].bring_to_front()
    until(pages[0], "kickstand.store.vms.get('demo')?.kicked === true")
    eventually(last, lambda: streams(last) == 1, "one stream")  # those of earlier tests end as their connections do
    last.evaluate("kickstand.runner.run('resume')")
    pages[0].close()  # it was the leader
    rest = pages[1:]
    eventually(last, lambda: leaders(rest).count(True) == 1, "another leader")
    last.bring_to_front()
    exits = last.evaluate("kickstand.vm().total('exits')")
    until(last, f"kickstand.vm().total('exits') > {exits}")


def test_a_restart_of_the_server_under_open_tabs(chromium):
    with serving() as server:
        context = chromium.new_context()
        first, second = tabs(context, server, 2)
        first.evaluate("kickstand.runner.story()")
        until(first, "kickstand.store.vms.get('demo')?.running > 0")
        epoch = first.evaluate("kickstand.store.epoch")
        server.stop()
        first.bring_to_front()
        until(first, "document.body.classList.contains('stale')")
        assert "reconnecting" in first.inner_text("#connection")
        assert "behind" not in first.inner_text("#connection")
        server.start()
        for page in (first, second):
            page.bring_to_front()
            until(page, f"kickstand.live.status === 'live' && kickstand.store.epoch !== '{epoch}'")
            until(
                page,
                "!document.body.classList.contains('stale') && [...kickstand.store.vms.keys()].join() === 'default'",
            )
        until(first, "document.querySelector('#banner').textContent.includes('restarted')")
        second.evaluate("kickstand.runner.run('kick', { vm: 'default' })")
        until(second, "kickstand.store.vms.get('default').kicked")
        context.close()


def test_silence_for_two_heartbeats_greys_the_page(chromium):
    with serving() as server:
        context = chromium.new_context()
        page = context.new_page()
        page.clock.install()
        opened(page, server.url)
        server.pause()
        try:
            # From here time stands still, so that the machine's pace is no part of this.
            page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 10)
            page.evaluate("kickstand.live.heardAt = performance.now()")
            page.clock.fast_forward(15_000)
            assert page.evaluate("kickstand.live.stale") is False
            page.clock.fast_forward(10_000)
            assert page.evaluate("kickstand.live.stale") is True
            page.clock.run_for(1500)
            assert page.evaluate("document.body.classList.contains('stale')")
        finally:
            server.go_on()
        context.close()


def test_a_token_is_exchanged_for_a_session_once(chromium, tmp_path):
    token = tmp_path / "token"
    token.write_text("not-a-secret")
    with serving("--token-file", str(token)) as server:
        context = chromium.new_context()
        page = context.new_page()
        opened(page, server.url)
        assert "code" not in page.url
        page.click("#do-kick + details summary")
        until(page, "document.querySelector('#do-kick + details pre')?.textContent.includes('KICKSTAND_TOKEN')")
        context.close()
        stranger = chromium.new_context()
        page = stranger.new_page()
        page.goto(server.url)
        page.wait_for_selector("#banner form")
        assert "used already" in page.inner_text("#banner")
        stranger.close()


REDUCER = (Path(__file__).parent / "reducer.js").read_text()
USER, GUEST = 0, 3


def left(seq):
    return [seq, "vcpu_state", 0, {"state": "user", "old": "guest"}]


def slot(seq, change):
    return [seq, "kvm_memslot", None, {"change": change, "slot": 1, "gpa": 4096, "npages": 1}]


def mmio(seq, gpa):
    return [seq, "kvm_mmio", 0, {"type": "unsatisfied-read", "len": 8, "gpa": gpa, "val": ""}]


def transaction(seq, phase):
    return [seq, "mem_transaction", None, {"phase": phase, "protect": "none", "operations": 2}]


def kick(seq, phase):
    return [seq, "kvm_kick_all", None, {"phase": phase}]


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([left(6)], {"state": USER}),
        ([left(7)], {"fits": False}),  # the sixth is missing
        ([left(5)], {}),  # seen before
        ([slot(6, "delete"), mmio(7, "0x1008"), slot(8, "create")], {"torn": 1}),
        ([mmio(6, "0x9000")], {}),  # a device
        ([transaction(6, "begin"), mmio(7, "0x1008"), slot(8, "delete"), transaction(9, "end")], {}),  # no RAM after
        (
            [transaction(6, "begin"), slot(7, "delete"), mmio(8, "0x1008"), slot(9, "create"), transaction(10, "end")],
            {"torn": 1},
        ),
        ([kick(6, "requested")], {"kicked": True}),
        ([kick(6, "requested"), kick(7, "taken back")], {}),
    ],
)
def test_the_reducer(page, events, outcome):
    """Applied once and in order; a missing number is noticed; torn is what was and is RAM."""
    assert page.evaluate(REDUCER, events) == {"fits": True, "state": GUEST, "torn": 0, "kicked": False} | outcome
