"""What is pending for a vCPU, who sleeps and what would wake it: on guests that really sleep."""

import re

import pytest

from tests.browser.browser import audit, until
from tests.browser.dashboard.sleepers import put_to_sleep
from tests.browser.dashboard.views import open_view

TERMS = """Object.fromEntries([...document.querySelectorAll('.pending dt')]
    .map((term) => [term.textContent, term.nextSibling.textContent]))"""
CHOSEN = "document.querySelector('.vcpu b').textContent === 'vCPU {}' && document.querySelector('.pending dt') !== null"


@pytest.fixture
def sleepers(page, server):
    put_to_sleep(server.url)
    until(page, "kickstand.store.vms.get('sleepers')?.count === 4")
    page.evaluate("kickstand.select('sleepers')")
    open_view(page, "vcpus")
    return page


def said_of(page, number):
    until(page, CHOSEN.format(number))
    return page.evaluate(TERMS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_sleeper_says_what_is_pending_and_what_would_wake_it(sleepers, scheme):
    sleepers.emulate_media(color_scheme=scheme)
    timer = said_of(sleepers, 0)
    assert set(timer) == {"Timer", "Woken by"}
    assert re.fullmatch(r"0x41 in [\d.]+ (s|ms|µs), then again and again", timer["Timer"])
    assert timer["Woken by"] == "its timer, an interrupt from 0x10 up, the 8259 pair, an NMI, INIT or a signal"
    sleepers.focus("#main canvas")
    told = []
    for number in range(1, 4):
        sleepers.keyboard.press("ArrowRight")
        told.append(said_of(sleepers, number))
    assert told == [
        {"Pending": "0x31", "Woken by": "an interrupt from 0x50 up, an NMI, INIT or a signal"},
        {"Pending": "0x55 0x31", "Woken by": "an NMI, INIT or a signal; interrupts are off in the guest"},
        {"Woken by": "INIT or a signal"},
    ]
    assert audit(sleepers) == []
    sleepers.set_viewport_size({"width": 390, "height": 844})
    assert sleepers.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_timer_that_fires_is_seen_and_an_interrupt_wakes(sleepers):
    seen = sleepers.evaluate("kickstand.store.seq")
    until(sleepers, f"kickstand.store.seq > {seen}")  # its timer's interrupt, by the real clock
    sleepers.focus("#main canvas")
    sleepers.keyboard.press("ArrowRight")
    assert said_of(sleepers, 1)["Pending"] == "0x31"
    before = sleepers.evaluate("kickstand.vm().since[1]")
    sleepers.evaluate("""fetch('/vms/sleepers/msi', { method: 'POST', headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ address: '0xfee01000', data: 0x61 }) }).then((answer) => answer.ok)""")
    until(sleepers, f"kickstand.vm().since[1] > {before}")


def test_on_a_server_where_nothing_happens_no_time_is_made_up_and_a_heartbeat_tells_it(page):
    """The page has missed nothing, and yet it cannot know the server's clock."""
    page.evaluate("kickstand.select('default')")
    open_view(page, "vcpus")
    until(page, "document.querySelector('.vcpu b')?.textContent === 'vCPU 0'")
    if page.evaluate("kickstand.live.base === Infinity"):
        assert " for " not in page.inner_text(".vcpu p")
        assert "behind" not in page.inner_text("#connection")
    until(page, "kickstand.live.base !== Infinity")
    until(page, "document.querySelector('#connection').textContent.includes('behind')")
