"""What a newcomer finds: five views, four sizes of type, an example that rests when nobody looks, a quiet tour."""

import time

from kickstand.client import Client
from tests.browser.browser import audit, opened, until
from tests.browser.dashboard.views import VIEWS, open_view, text

SIZES = """[...new Set([...document.querySelectorAll('body *')]
    .filter((node) => [...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim()))
    .filter((node) => node.checkVisibility())
    .map((node) => parseFloat(getComputedStyle(node).fontSize)))]"""
PATIENCE_S = 60


def test_there_are_five_views_and_four_sizes_of_type_none_below_12_px(story):
    assert story.locator("header nav a").all_inner_texts() == ["Overview", "vCPUs", "Timeline", "Memory", "Explorer"]
    sizes = set()
    for view in VIEWS:
        open_view(story, view)
        story.wait_for_timeout(200)
        sizes |= set(story.evaluate(SIZES))
    assert min(sizes) >= 12
    assert len(sizes) <= 4, sizes


def running(client):
    return sum(bool(vcpu["thread"] and vcpu["thread"]["running"]) for vcpu in client.state()["vcpus"])


def test_the_example_rests_when_nobody_looks_and_says_so_to_who_comes_back(story, context, server):
    story.close()
    with Client(server.url.rstrip("/"), vm="demo") as client:
        end = time.monotonic() + PATIENCE_S
        while running(client):
            assert time.monotonic() < end, "the example goes on for nobody"
            time.sleep(1)
        page = context.new_page()
        opened(page, f"{server.url}#view=overview&vm=demo")
        until(page, "kickstand.vm().running === 4")
        until(page, "document.querySelector('.telling').textContent.includes('it has rested while nobody looked')")
        assert running(client) == 4


def test_the_tour_begins_without_a_complaint_about_the_vm_that_it_will_make(page):
    page.click("#open-tour")
    page.wait_for_selector("#tour h2")
    page.wait_for_timeout(600)
    assert page.evaluate("kickstand.store.vms.has('tour')") is False
    assert "There is no VM" not in text(page, "#banner")
    assert audit(page) == []
    page.click("#tour-end")


def test_a_reload_in_the_middle_of_a_run_leaves_the_truth(story):
    """The transaction that was under way ends on the server; the page counts what it has seen."""
    story.evaluate("void kickstand.runner.run('rounds-none')")
    until(story, "kickstand.vm().torn > 0")
    story.reload()
    until(story, "window.kickstand?.ready && kickstand.live.status === 'live'")
    until(story, "kickstand.vm().open === null && kickstand.vm().torn > 0")
    told = story.evaluate("kickstand.vm().torn")
    assert text(story, ".board .number >> nth=0") == f"{told:,}"
    assert story.evaluate("kickstand.vm().slots.length") in {2, 3}
