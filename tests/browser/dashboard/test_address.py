"""The page's address: every view is a link, what it names and there is not is said, a reload tells what happened."""

from tests.browser.browser import eventually, opened, settled, until, visit
from tests.browser.dashboard.views import VIEWS, more, open_view, text


def test_every_view_is_a_link(page, server):
    for view in VIEWS:
        page.goto("about:blank")
        visit(page, f"{server.url}#view={view}")
        until(page, f"document.querySelector('#main > .view.{view}') !== null")
        assert page.locator("header a[aria-current=page]").get_attribute("data-view") == view


def test_links_to_views_that_have_moved_still_lead_there(page, server):
    for old, now in (("fleet", "vcpus"), ("table", "vcpus"), ("lock", "timeline"), ("journal", "timeline")):
        page.goto("about:blank")
        visit(page, f"{server.url}#view={old}")
        until(page, f"document.querySelector('#main > .view.{now}') !== null")


def test_an_address_that_names_what_there_is_not_says_so(page, server):
    page.goto("about:blank")
    opened(page, f"{server.url}#view=nowhere&vm=nobody")
    until(page, "document.querySelector('#banner [role=alert]') !== null")
    said = text(page, "#banner [role=alert]")
    assert "no view “nowhere”" in said
    assert "no VM “nobody”" in said


def test_after_a_reload_and_in_a_second_tab_the_page_tells_what_happened(story, context):
    """Holes, kicks, warnings and the journal come from the server."""
    more(story)
    story.click("#do-rounds")
    until(story, "kickstand.vm().torn > 0 && kickstand.runner.busy === 0")
    story.click("#do-kick")
    until(story, "kickstand.vm().kicked")
    story.click("#do-resume")
    until(story, "!kickstand.vm().kicked && kickstand.runner.busy === 0")
    before = story.evaluate(PAST)
    assert before["torn"] > 0
    second = context.new_page()
    opened(second, story.url)
    assert second.evaluate(PAST) == before
    story.bring_to_front()
    story.reload()
    settled(story)
    assert story.evaluate(PAST) == before
    open_view(story, "warnings")
    until(story, f"document.querySelector('.warninglist')?.textContent.includes('{before['torn']} holes seen')")
    open_view(story, "timeline")
    until(story, "document.querySelector('.events')?.textContent.includes('KICK returns')")


def test_a_tab_says_nothing_before_it_knows_the_past(story, context):
    """Another tab passes on what it reads, and that all is well, while this one still asks what has been."""
    story.evaluate("kickstand.runner.run('merge-none')")
    until(story, "kickstand.vm().torn > 0 && kickstand.runner.busy === 0")
    story.evaluate("kickstand.runner.behave('well')")  # who spins pushes what was before out of the server's ring
    story.evaluate("kickstand.runner.run('kick')")  # from here the guests see no more holes
    until(story, "kickstand.vm().kicked && kickstand.runner.busy === 0")
    held = []
    second = context.new_page()
    second.route("**/trace?*", lambda route: held.append(route))  # noqa: PLW0108  playwright marks what it is given
    visit(second, story.url)
    eventually(second, lambda: held, "the past is asked for")
    heard = second.evaluate("kickstand.live.heardAt")
    until(second, f"kickstand.live.heardAt > {heard}")
    story.evaluate("kickstand.live.shared._status('live')")
    assert second.evaluate("[kickstand.ready, kickstand.live.status, kickstand.store.epoch]") == [
        False,
        "connecting",
        None,
    ]
    assert text(second, "#badge") == "… warnings"
    for route in held:
        route.continue_()
    settled(second)
    assert second.evaluate(PAST) == story.evaluate(PAST)


PAST = """(() => {
    const vm = kickstand.store.vms.get('demo');
    const told = ({ how, requested, changes, torn }) => [how, requested !== null, changes.length, torn.length];
    const slots = vm.slots.map(({ slot, gpa, size }) => [slot, gpa, size]);
    return { torn: vm.torn, score: vm.score, slots, episodes: vm.episodes.map(told) };
})()"""


def test_the_links_of_the_views_stay_where_they_are_whatever_is_told_of_the_vm(page):
    """Whoever presses one presses that one, while the page learns of its VM and while the VM is kicked."""
    places = """Array.from(document.querySelectorAll('#views a'), (link) => link.getBoundingClientRect().x)"""
    before = page.evaluate(places)
    for told in ("", "kicked", "arm64_pause · script · kicked"):
        page.evaluate(f"document.querySelector('#machine .facts').textContent = '{told}'")
        assert page.evaluate(places) == before
