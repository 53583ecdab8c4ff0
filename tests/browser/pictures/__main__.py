"""Writes a picture of every view, light and dark, to docs/img: `python -m tests.browser.pictures [FOLDER]`.

The pictures show a live server with a scene that is the same every time, as far as live guests allow.
"""

import sys
from pathlib import Path

from tests.browser.browser import browsing, explored, missing, serving, until
from tests.browser.dashboard.sleepers import put_to_sleep
from tests.browser.dashboard.views import open_view
from tests.browser.pictures.palette import pack

SIZE = {"width": 1280, "height": 800}
TALL = {"width": 1280, "height": 1180}
# Enough vCPUs that the fleet is one.
FLEET = """(async () => {
    const form = { name: 'fleet', vcpus: 60, guest: 'mixed', variant: 'sticky', engine: 'script', irqchip: true };
    for (const action of ['create', 'load', 'start']) await kickstand.runner.run(action, { vm: 'fleet', form });
})()"""
MOST = 100_000  # bytes of one picture
COLOURS = (255, 128, 64, 32, 16)


def scene(page, url):
    """The story, torn merges, and a merge inside a kick."""
    page.goto(url)
    until(page, "kickstand.vm()?.running === 4")
    page.wait_for_timeout(2500)
    page.click("#story-race")
    until(page, "kickstand.vm().torn > 0 && !kickstand.runner.busy")
    page.wait_for_timeout(700)
    page.evaluate("kickstand.runner.run('merge-kick')")
    until(page, "kickstand.runner.results.get('merge-kick') && !kickstand.runner.busy")
    page.wait_for_timeout(600)


def views(page, url):  # noqa: PLR0915  a walk through the page, in order
    """Every view in a telling state; yields its name when it is there."""

    def show(name):
        open_view(page, name)
        page.mouse.move(640, 2)  # nothing is to look pointed at
        page.wait_for_timeout(500)

    show("overview")
    yield "overview"
    page.evaluate(FLEET)
    show("vcpus")
    yield "vcpus"
    page.click("#as-table")
    page.click(".vcpus thead button >> text=Exits")
    page.click(".vcpus thead button >> text=Exits")
    page.wait_for_timeout(500)
    yield "table"
    page.evaluate("kickstand.runner.discard('fleet')")
    put_to_sleep(url)
    until(page, "kickstand.store.vms.get('sleepers')?.count === 4")
    page.evaluate("kickstand.select('sleepers')")
    page.click("#as-cells")
    until(page, "document.querySelector('.pending')?.textContent.includes('Timer')")
    page.focus("#main canvas")
    page.keyboard.press("ArrowRight")
    until(page, "kickstand.vm().threads[1]?.running")
    until(page, "document.querySelector('.pending')?.textContent.includes('0x50')")
    yield "sleepers"
    page.evaluate("kickstand.runner.discard('sleepers').then(() => kickstand.select('demo'))")
    show("memory")
    torn = page.evaluate("kickstand.vm().episodes.findLast((episode) => episode.torn.length).number")
    page.select_option("#main select", str(torn))
    page.wait_for_timeout(400)
    yield "memory"
    show("timeline")
    kick = page.evaluate("kickstand.vm().episodes.findLast((episode) => episode.requested !== null).number")
    page.select_option("#episode", str(kick))
    page.wait_for_timeout(300)
    for _ in range(8):
        page.locator("#main button", has_text="Step →").click()
    page.wait_for_timeout(400)
    page.set_viewport_size(TALL)
    page.wait_for_timeout(300)
    yield "timeline"
    page.set_viewport_size(SIZE)
    page.evaluate("kickstand.runner.run('kick')")
    page.wait_for_timeout(300)
    show("warnings")
    page.wait_for_timeout(2200)
    yield "warnings"
    page.evaluate("kickstand.runner.run('resume')")
    page.wait_for_timeout(200)
    page.click("#open-tour")
    for step in (1, 2, 3):
        until(page, f"document.querySelector('#tour h2')?.textContent.startsWith('{step} of 6')")
        page.click("#tour-next")  # does the step
        until(page, "document.querySelector('#tour .found:not(:empty)') && kickstand.runner.busy === 0")
        if step < 3:
            page.click("#tour-next")
    page.wait_for_timeout(500)
    yield "tour"
    page.click("#tour-end")
    show("explorer")
    page.wait_for_selector("#explore")
    page.click("#explore")
    explored(page)
    yield "explorer"
    page.click("td[data-verdict=violated] button >> nth=1")
    page.locator("#main .counterexample button", has_text="Step →").click(click_count=20)
    page.evaluate("scrollBy(0, document.querySelector('.counterexample').getBoundingClientRect().top - 90)")
    page.wait_for_timeout(300)
    yield "counterexample"


def save(page, blank, path):
    """Save the page in few bytes, with fewer colours where it has to be."""
    png = page.screenshot()
    packed = next((made for made in (pack(blank, png, colours) for colours in COLOURS) if len(made) <= MOST), None)
    if packed is None:
        sys.exit(f"{path} cannot be made small enough")
    path.write_bytes(packed)
    sys.stdout.write(f"{path} {len(packed) // 1000} kB\n")


def shoot(folder):
    with serving() as server, browsing() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme, device_scale_factor=1)
            blank, page = context.new_page(), context.new_page()
            page.on("pageerror", lambda error: sys.exit(f"the page complains: {error}"))
            scene(page, server.url)
            for name in views(page, server.url):
                path = folder / f"{name}-{scheme}.png"
                save(page, blank, path)
            page.evaluate("Promise.all(['demo', 'tour'].map((name) => kickstand.runner.discard(name)))")
            context.close()


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")
    target.mkdir(parents=True, exist_ok=True)
    shoot(target)
