"""The page for everybody: an audit, contrast, zoom, forced colours, reduced motion, and a thousand vCPUs."""

from pathlib import Path

import pytest

from tests.browser.axe import AXE, axe
from tests.browser.browser import audit, opened, until
from tests.browser.dashboard.views import VIEWS, more, open_table, open_view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_an_accessibility_fault(story, scheme):
    story.emulate_media(color_scheme=scheme)
    story.evaluate("kickstand.runner.run('merge-none')")
    until(story, "kickstand.vm().torn > 0")
    for view in VIEWS:
        open_view(story, view)
        story.wait_for_timeout(250)
        assert audit(story) == [], view
        if AXE:
            assert axe(story) == [], view
    story.keyboard.press("?")
    story.wait_for_selector("dialog[open]")
    assert audit(story) == [], "help"
    story.keyboard.press("Escape")


@pytest.mark.parametrize("size", [(640, 450), (390, 844), (320, 568)], ids=["zoomed", "phone", "small"])
def test_zoomed_to_200_percent_and_on_a_phone_nothing_is_cut_off(context, server, size):
    page = context.new_page()
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))  # the first is 1280 by 900 at 200 %
    opened(page, f"{server.url}#view=overview")
    page.evaluate("kickstand.runner.story()")
    until(page, "kickstand.vm()?.running === 4")
    page.evaluate("kickstand.runner.run('merge-none')")
    until(page, "kickstand.vm().torn > 0 && kickstand.runner.busy === 0")
    for view in VIEWS:
        open_view(page, view)
        page.wait_for_timeout(250)
        assert audit(page) == [], view
    page.locator("#do-kick").scroll_into_view_if_needed()
    page.click("#do-kick")
    until(page, "kickstand.vm().kicked")


def test_forced_colours_and_reduced_motion(story):
    story.emulate_media(forced_colors="active", reduced_motion="reduce")
    open_view(story, "vcpus")
    story.wait_for_timeout(500)
    assert audit(story) == []
    frames = story.evaluate("""() => new Promise((resolve) => {
        let draws = 0;
        const count = () => (draws += 1);
        kickstand.frame.fast.add(count);
        let turns = 0;
        const turn = () => {
            turns += 1;
            if (turns < 4) return;
            kickstand.frame.fast.delete(count);
            kickstand.frame.slow.delete(turn);
            resolve(draws);
        };
        kickstand.frame.slow.add(turn);
    })""")
    assert frames == 4  # drawn with the slow parts, not sixty times a second


def test_the_live_region_speaks_at_most_once_a_second(story):
    story.evaluate("""() => {
        window.began = performance.now();
        window.spoken = 0;
        const watch = new MutationObserver(() => (spoken += 1));
        watch.observe(document.querySelector('#live'), { childList: true });
    }""")
    more(story)
    story.click("#do-rounds")
    story.click("#do-kick")
    until(story, "kickstand.vm().kicked && kickstand.runner.busy === 0")
    story.wait_for_timeout(2600)
    assert story.evaluate("spoken > 0 && spoken <= 1 + (performance.now() - began) / 1000")


def test_a_thousand_vcpus_fit_one_screen(page):
    page.emulate_media(reduced_motion="no-preference")
    page.evaluate("kickstand.runner.run('create', { form: { name: 'big', vcpus: 1000, irqchip: false } })")
    until(page, "kickstand.store.vms.get('big')?.count === 1000")
    page.evaluate("kickstand.select('big')")
    open_view(page, "vcpus")
    until(page, "document.querySelector('#main canvas').getAttribute('aria-label').includes('1,000 vCPUs')")
    box = page.locator("#main canvas").bounding_box()
    assert box["y"] + box["height"] <= 900
    open_table(page)
    until(page, "document.querySelectorAll('.vcpus tbody tr').length === 100")
    page.fill("#filter", "777")
    until(page, "document.querySelectorAll('.vcpus tbody tr').length === 1")
    open_view(page, "timeline")
    page.wait_for_selector("#main select[aria-label=Lanes]")
    page.select_option("#main select[aria-label=Lanes]", "64")
    until(page, "kickstand.frame.frames > 200")  # it is drawn, without a complaint; how fast is the benchmark's


def test_the_scripts_are_small(page):
    """As they are served: every file that the page loads by itself, compressed."""
    loaded = page.evaluate("""performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('.js'))
        .map(({ name, encodedBodySize }) => [new URL(name).pathname, encodedBodySize])""")
    assert len(loaded) > 20
    assert sum(size for _, size in loaded) <= 62_000
    folder = Path(__file__).parents[3] / "app" / "dashboard"
    assert all(len(script.read_text().splitlines()) <= 250 for script in folder.rglob("*.js"))
