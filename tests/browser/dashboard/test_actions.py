"""Every button does what its curl says."""

import re
import shlex
import subprocess

import pytest

from tests.browser.browser import audit, until
from tests.browser.dashboard.views import inside_kicks, more, open_view, text

STORY_BUTTONS = (  # and the action behind each
    ("kick", "kick"),
    ("resume", "resume"),
    ("merge", "merge-none"),
    ("split", "split-none"),
    ("rounds", "rounds-none"),
    ("inside", ""),
    ("merge", "merge-kick"),
    ("split", "split-kick"),
    ("rounds", "rounds-kick"),
    ("wake", "wake"),
    ("stop", "stop"),
    ("load", "load"),
    ("start", "start"),
)


def result(page, action):
    until(page, f"kickstand.runner.results.get('{action}')?.busy === false")
    return page.evaluate(f"kickstand.runner.results.get('{action}')")


def calm(page):
    """Wait until nothing above the buttons moves any more: what is told there comes with the first drawings."""
    page.evaluate("""(async () => {
        const drawn = () => new Promise((resolve) => kickstand.frame.slow.add(resolve));
        const place = () => document.querySelector("#do-kick").getBoundingClientRect().y;
        for (let before = NaN; before !== place();) {
            before = place();
            await drawn();
            await drawn();
        }
    })()""")


def test_every_button_works_on_the_story(story):
    more(story)
    for button, action in STORY_BUTTONS:
        if button == "inside":
            inside_kicks(story, wanted=True)
            continue
        until(story, f"document.querySelector('#do-{button}').getAttribute('aria-disabled') === 'false'")
        story.click(f"#do-{button}")
        answer = result(story, action)
        assert answer["ok"], (action, answer["text"])
    until(story, "kickstand.vm().running === 4")


def test_a_button_stays_under_a_pressed_pointer(story):
    """What came of another action would move it, and the click would be lost."""
    calm(story)
    story.hover("#do-resume")
    story.mouse.down()
    story.evaluate("kickstand.runner.run('kick')")
    until(story, "kickstand.runner.results.get('kick')?.busy === false && kickstand.vm().kicked")
    story.evaluate("new Promise((drawn) => kickstand.frame.slow.add(drawn))")
    story.mouse.up()
    assert result(story, "resume")["ok"]


def test_the_story_comes_up_when_no_pointer_is_pressed(page):
    """It lies above the buttons, and is fetched when it is first needed."""
    calm(page)
    page.hover("#do-kick")
    page.mouse.down()
    page.evaluate("kickstand.runner.story()")
    until(page, "kickstand.vm()?.running === 4 && kickstand.vm().total('exits') > 0")
    page.evaluate("new Promise((drawn) => setTimeout(() => kickstand.frame.slow.add(drawn), 300))")
    assert page.locator(".telling").count() == 0
    page.mouse.up()
    assert result(page, "kick")["ok"]
    until(page, "document.querySelector('.telling')")


def test_every_action_has_a_button_and_a_curl(story):
    more(story)
    ids = story.evaluate("import('/dashboard/controls/actions.js').then(({ ACTIONS }) => ACTIONS.map(({ id }) => id))")
    assert len(ids) == 14
    for name in {name.removesuffix("-none").removesuffix("-kick") for name in ids}:
        assert story.locator(f"#do-{name} + details.curl").count() == 1, name
    story.click("#do-kick ~ details.curl summary")
    until(story, "document.querySelector('#do-kick ~ details.curl pre').textContent.startsWith('curl -sX POST http')")


@pytest.mark.parametrize("action", ["kick", "load"])
def test_the_curl_under_a_button_is_the_call(story, action):
    """What the page shows is run by a shell, with the same effect."""
    if action == "load":
        more(story)
        story.click("#do-stop")
        until(story, "kickstand.vm().running === 0")
    story.click(f"#do-{action} ~ details.curl summary")
    until(story, f"document.querySelector('#do-{action} ~ details.curl pre').textContent.startsWith('curl')")
    for line in text(story, f"#do-{action} ~ details.curl pre").splitlines():
        command = line.replace("curl -s", "curl -sf", 1)
        assert shlex.split(command)
        subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
    if action == "kick":
        until(story, "kickstand.vm().kicked")


def test_a_vm_with_real_machine_code_is_made_and_torn(page):
    more(page)
    calm(page)
    page.fill("#controls .fields input[maxlength]", "metal")
    page.get_by_role("combobox", name="Engine").select_option("x86")
    page.click("#do-create")
    assert result(page, "create")["ok"]
    until(page, "kickstand.vm()?.id === 'metal' && kickstand.vm().engine === 'x86'")
    assert "vm=metal" in page.url
    page.click("#do-load")
    assert result(page, "load")["ok"]
    until(page, "document.querySelector('#controls .fields pre').textContent.includes('mov  eax, [0x201000]')")
    page.click("#do-start")
    until(page, "kickstand.vm().total('pio') > 2")
    for _ in range(5):  # a page that cannot read as fast as events come skips some: then once more
        page.click("#do-rounds")
        assert result(page, "rounds-none")["ok"]
        if page.evaluate("kickstand.vm().torn"):
            break
    until(page, "kickstand.vm().torn > 0")
    torn = page.evaluate("kickstand.vm().torn")
    inside_kicks(page, wanted=True)
    page.click("#do-rounds")
    assert re.search("no hole seen", result(page, "rounds-kick")["text"])
    assert page.evaluate("kickstand.vm().torn") == torn
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#do-delete")
    assert result(page, "delete")["ok"]
    until(page, "!kickstand.store.vms.has('metal')")


def test_variant_and_userspace_are_chosen(page):
    more(page)
    calm(page)
    page.get_by_role("textbox", name="Name").fill("polite")
    page.get_by_role("spinbutton", name="vCPUs").fill("2")
    page.get_by_role("combobox", name="Variant").select_option("clear_on_exit")
    page.click("#do-create")
    assert result(page, "create")["text"] == "VM polite with 2 vCPUs, variant clear_on_exit"
    page.get_by_role("combobox", name="Example").select_option("tight")
    page.get_by_role("combobox", name="Userspace").select_option("well")
    page.click("#do-load")
    assert result(page, "load")["ok"]
    page.click("#do-start")
    until(page, "kickstand.vm().running === 2")
    assert page.evaluate("kickstand.vm().threads.map(({ behaviour }) => behaviour).join()") == "well,well"
    until(page, "kickstand.vm().tally()[3] === 2")
    page.click("#do-kick")
    assert "2 vCPUs out of KVM_RUN" in result(page, "kick")["text"]
    until(page, "kickstand.vm().total('eintr') === 2")
    page.click("#do-resume")
    assert result(page, "resume")["ok"]
    until(page, "kickstand.vm().tally()[3] === 2")
    assert page.evaluate("kickstand.vm().total('eintr')") == 2  # well-behaved userspace has waited


def test_a_refusal_is_told_in_words(page, context):
    context.watch.expected = ("409",)
    page.evaluate("kickstand.runner.run('create', { form: { name: 'default' } })")
    assert "EEXIST" in result(page, "create")["text"]
    page.focus("#do-merge")  # it can be reached, and says why not
    page.keyboard.press("Enter")
    assert result(page, "merge-none") == {
        "text": "Merge: no two neighbouring slots",
        "ok": False,
        "busy": False,
    }


def test_the_tour_shows_problem_and_cure(page):
    page.click("#open-tour")
    page.wait_for_selector("#tour h2")
    assert audit(page) == []
    seen = []
    for step in range(6):
        page.click("#tour-do" if step % 2 else "#tour-next")  # Next does the step, too
        page.wait_for_selector("#tour .found:not(:empty)")
        until(page, "document.querySelector('#tour-do').getAttribute('aria-disabled') === 'false'")
        seen.append(text(page, "#tour .found"))
        assert f"tour={step + 1}" in page.url
        if step < 5:
            page.click("#tour-next")
    assert "3 slots" in seen[0]
    assert "fell into a hole" in seen[2]
    assert "drained every vCPU" in seen[3]
    assert "No hole was seen" in seen[4]
    assert "useless calls" in seen[5]
    assert text(page, "#tour-next") == "Finish"
    page.click("#tour-next")
    page.click("#tour-remove")
    assert not page.is_visible("#tour")
    until(page, "!kickstand.store.vms.has('tour')")
    assert "tour" not in page.url


def test_everything_can_be_done_by_keyboard(page):
    """From the invitation to a kick, without a pointer."""
    until(page, "document.getElementById('story')?.checkVisibility() && kickstand.vm() !== undefined")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "story":
            break
    assert page.evaluate("document.activeElement.id") == "story"
    page.keyboard.press("Enter")
    until(page, "kickstand.vm()?.running === 4")
    page.keyboard.press("k")
    until(page, "kickstand.vm().kicked")
    page.keyboard.press("r")
    until(page, "!kickstand.vm().kicked")
    page.keyboard.press("?")
    until(page, "document.querySelector('dialog')?.open")
    assert "What a kick does" in text(page, "dialog")
    assert page.evaluate("document.querySelector('dialog').scrollTop") == 0
    assert page.locator("dialog h2").bounding_box()["y"] > 0
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog').open")
    for number, view in ((2, "vcpus"), (3, "timeline"), (4, "memory"), (3, "timeline")):
        page.keyboard.press(str(number))
        until(page, f"document.querySelector('#main > .view.{view}') !== null")
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'journal-filter'")
    page.keyboard.type("k")  # typing is not kicking
    page.wait_for_timeout(100)
    assert page.evaluate("kickstand.vm().kicked") is False
    reached = set()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    more(page)
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {
        "do-kick",
        "do-resume",
        "do-merge",
        "do-split",
        "inside",
        "do-load",
        "do-start",
        "do-stop",
        "do-delete",
        "vm",
        "help",
    } <= reached


def test_an_open_view_follows_the_back_button(page):
    open_view(page, "vcpus")
    open_view(page, "memory")
    page.go_back()
    until(page, "document.querySelector('#main > .view.vcpus') !== null")
