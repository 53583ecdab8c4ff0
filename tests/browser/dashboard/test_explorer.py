"""The explorer's view, with the real explorer behind it."""

from tests.browser.browser import audit, explored, until
from tests.browser.dashboard.views import open_view, text


def test_the_explorer_fills_its_matrix_and_steps_through_a_counterexample(page):
    """With the real explorer behind the page."""
    open_view(page, "explorer")
    page.click("text=Variants, behaviours and properties")
    for name in ("none", "sticky", "global_rwsem", "missing_slot", "bounded_busy", "kick_returns", "resume_runs"):
        page.uncheck(f"input[value={name}]")
    until(page, "document.querySelector('#main code.line').textContent.startsWith('curl -sX POST http')")
    page.click("#explore")
    until(page, "document.querySelectorAll('.matrix td').length === 4")
    assert explored(page) == "done: 4 of 4 cells decided"
    verdicts = page.evaluate("[...document.querySelectorAll('.matrix td')].map((cell) => cell.dataset.verdict)")
    assert verdicts == ["violated", "violated", "holds", "holds"]
    page.click("button[aria-label='clear_after_up_write · careless/spurious_mmio: violated']")
    page.wait_for_selector(".columns tr[aria-current]")
    assert "cell=" in page.url
    rows = page.locator(".columns tbody tr")
    length = rows.count()
    assert page.locator(".columns tr.ahead").count() == length - 1
    page.focus(".counterexample button")
    seen = [moment(page)]
    for _ in range(length - 1):
        page.keyboard.press("ArrowRight")
        seen.append(moment(page))
    assert f"Step {length} of {length}" in text(page, ".counterexample .step")
    states = [each["cpu"] for each in seen]
    assert {"kernel", "guest", "user"} <= set(states)
    assert states[-1] == "user"
    assert "hole" not in seen[0]["map"]
    assert "a hole from 0x1000" in seen[-1]["map"]
    assert "1 access of it" in seen[-1]["map"]
    assert {"KICK waits", "window: nobody inside"} <= {each["kick"] for each in seen}
    assert audit(page) == []
    page.locator(".lane i").first.click()
    assert f"Step 1 of {length}" in text(page, ".counterexample .step")
    assert "kickstand explore --replay ks2" in text(page, ".counterexample")
    with page.expect_download() as download:
        page.click("text=Download JSON")
    assert download.value.suggested_filename == "counterexample.json"


def moment(page):
    """What timeline and memory map of a counterexample say at its step."""
    return page.evaluate("""(() => {
        const lanes = Object.fromEntries([...document.querySelectorAll('.lane')].map((lane) => [
            lane.firstChild.textContent, lane.lastChild.textContent]));
        const map = document.querySelector('.moment .strip').getAttribute('aria-label');
        return { cpu: lanes.CPU0, kick: lanes.kick, map };
    })()""")


def test_without_an_explorer_the_view_says_so(page):
    page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {}}))
    open_view(page, "explorer")
    until(page, "document.querySelector('#main .story').textContent.includes('kickstand explore --matrix')")
