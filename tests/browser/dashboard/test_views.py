"""Every view, with live guests behind it."""

from urllib.request import Request, urlopen

from tests.browser.browser import until, visit
from tests.browser.dashboard.views import inside_kicks, more, open_table, open_view, text

# Guest and halted, as painted.
BOTH_COLOURS = """(() => {
    const canvas = document.querySelector('#main canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let n = 0; n < data.length; n += 4) seen.add((data[n] << 16) | (data[n + 1] << 8) | data[n + 2]);
    return seen.has(0x2bb58a) && seen.has(0xcc79a7);
})()"""


def test_a_newcomer_sees_vcpus_move_and_finds_race_and_cure(context, server):
    page = context.new_page()
    page.emulate_media(reduced_motion="no-preference")
    visit(page, server.url)
    until(page, "kickstand.vm()?.id === 'demo' && kickstand.vm().total('exits') > 1")
    until(page, "document.querySelector('#main canvas')?.getAttribute('aria-label').includes('4 vCPUs of demo')")
    assert "the story" in page.get_by_role("region", name="The story").get_attribute("aria-label").lower()
    assert page.locator(".telling .primary:visible").count() == 1  # one step, one button
    page.click("#story-race")
    until(page, r"/\d+ holes? seen/.test(document.querySelector('.telling .found').textContent)")
    torn = page.evaluate("kickstand.vm().torn")
    assert text(page, ".board .number >> nth=0") == f"{torn:,}"
    page.click("#story-next")
    page.click("#story-kick")
    until(page, "document.querySelector('#story-kick').textContent === 'Resume' && kickstand.vm().kicked")
    until(page, "document.querySelector('.telling .found').textContent.includes('out of KVM_RUN in')")
    page.click("#story-kick")
    until(page, "document.querySelector('#story-kick').textContent === 'Kick' && kickstand.runner.busy === 0")
    page.click("#story-next")
    page.click("#story-cure")
    until(page, "document.querySelector('.telling .found').textContent.includes('no hole seen')")
    assert page.evaluate("kickstand.vm().torn") == torn
    assert text(page, ".board .number >> nth=1") == "0"
    assert page.evaluate("kickstand.vm().score.kick.changes") == 20
    page.click(".stops button >> nth=0")
    until(page, "document.querySelector('#story-run')?.hidden === true")
    more(page)
    page.click("#do-stop")
    page.wait_for_selector("#story-run")
    page.click("#story-run")
    until(page, "kickstand.vm().running === 4")
    page.click("#story-end")
    until(page, "kickstand.store.vms.size === 1")
    page.goto("about:blank")
    visit(page, server.url)
    page.wait_for_selector("#story")  # whoever has removed it is asked from now on
    assert page.evaluate("[...kickstand.store.vms.keys()].join()") == "default"
    page.click("#story")
    until(page, "kickstand.vm()?.running === 4")
    until(page, "document.querySelector('#story') === null")


def test_a_server_in_use_is_left_alone(context, server):
    urlopen(Request(f"{server.url}vms", data=b'{"id": "mine"}', headers={"Content-Type": "application/json"})).close()
    page = context.new_page()
    visit(page, server.url)
    until(page, "window.kickstand?.store.vms.size === 2 && document.querySelector('#main > .view.overview') !== null")
    page.wait_for_timeout(300)
    assert page.evaluate("[...kickstand.store.vms.keys()].sort().join()") == "default,mine"


def test_the_fleet_shows_each_state_by_colour_glyph_and_word(story, context):
    context.watch.expected = ("getImageData",)  # the test's own reading
    open_view(story, "vcpus")
    until(story, "document.querySelector('#main canvas').getAttribute('aria-label').includes('1 halted')")
    shown = text(story, ".legend").split()
    assert shown[::2] == ["user", "waiting", "kernel", "guest", "exiting", "halted", "blocked"]
    assert sum(map(int, shown[1::2])) == 4
    assert story.locator(".legend svg.glyph").count() == 7
    until(story, BOTH_COLOURS)


def test_a_vcpu_can_be_chosen_and_run(story):
    open_view(story, "vcpus")
    story.focus("#main canvas")
    for _ in range(2):
        story.keyboard.press("ArrowRight")
    until(story, "document.querySelector('.vcpu b').textContent === 'vCPU 2'")
    story.click("#vcpu-stop")
    until(story, "kickstand.vm().threads[2] === null || !kickstand.vm().threads[2].running")
    story.click("#vcpu-run")
    until(
        story, "document.querySelector('.vcpu .result').textContent.includes('EINTR')"
    )  # after a second, by the timeout
    story.click("#vcpu-start")
    until(story, "kickstand.vm().threads[2]?.running === true")
    story.click("#vcpu-signal")
    until(story, "document.querySelector('.vcpu .result').textContent === 'done'")


def test_the_table_is_sorted_filtered_and_linked(story):
    open_table(story)
    until(story, "document.querySelectorAll('.vcpus tbody tr').length === 4")
    story.keyboard.press("/")
    story.keyboard.type("state:halted")
    until(story, "document.querySelectorAll('.vcpus tbody tr').length === 1")
    assert "filter=state" in story.url
    story.fill("#filter", "")
    story.click(".vcpus thead button >> text=Exits")
    story.click(".vcpus thead button >> text=Exits")
    until(story, "document.querySelector('th[aria-sort=descending]')?.textContent === 'Exits'")
    assert "sort=exits-down" in story.url
    numbers = story.evaluate(
        "[...document.querySelectorAll('td.exits')].map((cell) => Number(cell.textContent.replaceAll(',', '')))"
    )
    assert numbers == sorted(numbers, reverse=True)


def test_a_torn_read_is_red_on_the_map_and_a_kick_prevents_it(story):
    open_view(story, "memory")
    story.click("#do-merge")
    until(story, "kickstand.vm().torn > 0")
    until(story, "document.querySelector('.story.torn') !== null && document.querySelector('.strip .mark') !== null")
    until(story, "document.querySelectorAll('.row .hole').length >= 3")
    assert "RAM before and after" in text(story, ".rows")
    torn = story.evaluate("kickstand.vm().torn")
    inside_kicks(story, wanted=True)
    story.click("#do-split")
    until(story, "document.querySelector('#main .story').textContent.includes('nobody saw a hole')")
    assert story.evaluate("kickstand.vm().torn") == torn


def test_going_through_a_kick_moves_lanes_and_semaphore(story):
    open_view(story, "timeline")
    story.click("#do-kick")
    until(story, "kickstand.vm().kicked && kickstand.vm().episodes.length === 1")
    story.click("#do-resume")
    until(story, "kickstand.vm().episodes[0].resumed !== null")
    story.select_option("#episode", "1")
    until(story, "kickstand.cursor !== null")
    assert "KICK begins" in text(story, "#main .step")
    before = story.evaluate("kickstand.store.seq")
    story.focus("#main canvas")
    texts = []
    for _ in range(8):
        story.keyboard.press("ArrowRight")
        story.wait_for_timeout(30)
        texts.append(text(story, "#main .step"))
    assert any("IPI" in line for line in texts)
    assert len(set(texts)) == 8
    assert "episode=1" in story.url
    assert "step=8" in story.url
    assert story.evaluate("kickstand.store.seq") > before  # the view is paused, the VM is not
    for _ in range(8):
        story.keyboard.press("ArrowLeft")
    for _ in range(4):
        story.keyboard.press("ArrowRight")
    until(story, "document.querySelector('#part-lock .story').textContent.includes('waits for the write side')")
    assert story.locator(".edges path").count() > 0


def test_the_view_is_paused_and_comes_back(story):
    open_view(story, "timeline")
    story.click("#pause")
    until(story, "document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")
    exits = story.evaluate("kickstand.vm().total('exits')")
    until(story, f"kickstand.vm().total('exits') > {exits}")
    story.keyboard.press("+")
    story.click("#pause")
    until(story, "document.querySelector('#pause').getAttribute('aria-pressed') === 'false'")
    story.locator("#main canvas").drag_to(
        story.locator("#main canvas"), source_position={"x": 200, "y": 60}, target_position={"x": 400, "y": 60}
    )
    until(story, "document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")


def test_a_paused_view_stays_as_it_was_when_a_vcpu_comes_and_ends_with_its_vm(story):
    open_view(story, "timeline")
    story.click("#pause")
    until(story, "document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")
    story.evaluate(
        "fetch('/vms/demo/vcpu', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{\"id\": 9}'})"
    )
    until(story, "kickstand.vm().count === 5")
    story.keyboard.press("+")  # it is drawn again
    story.wait_for_timeout(500)
    assert story.get_attribute("#pause", "aria-pressed") == "true"
    story.select_option("#vm", "default")
    until(story, "document.querySelector('#pause').getAttribute('aria-pressed') === 'false'")


def test_a_kick_that_hangs_shows_who_keeps_it_waiting(page, context):
    """Two VMs on one semaphore, as in the patch as posted."""
    context.watch.expected = ("504",)
    shared = {"variant": "global_rwsem", "vcpus": 2, "guest": "tight", "irqchip": False}
    for name in ("a", "b"):
        made = f"kickstand.runner.run('create', {{ form: {{ ...{shared}, irqchip: false, name: '{name}' }} }})"
        page.evaluate(made.replace("False", "false"))
    for action in ("load", "start"):
        page.evaluate(
            f"kickstand.runner.run('{action}', {{ vm: 'b', form: {{ guest: 'tight', behaviour: 'careless' }} }})"
        )
    page.evaluate("kickstand.select('a')")
    open_view(page, "timeline")
    # The button's kick gives up after two seconds, which can be over before a busy machine has looked.
    page.evaluate("(window.kick = fetch('/vms/a/kick', { method: 'POST' }), null)")
    until(page, "document.querySelector('#main .story').textContent.includes('vCPUs of another VM')")
    until(page, "document.querySelector('.queue').textContent.includes('the kick wants the write side, waits')")
    assert page.evaluate("kickstand.runner.run('stop', { vm: 'b' })")
    assert page.evaluate("kick.then((answer) => answer.ok)")
    assert page.evaluate("kickstand.runner.run('resume', { vm: 'a' })")
    assert page.evaluate("kickstand.runner.run('start', { vm: 'b', form: { behaviour: 'careless' } })")
    page.click("#do-kick")
    until(page, "document.querySelector('#do-kick ~ .result.bad') !== null")
    assert "ETIMEDOUT" in text(page, "#controls")
    open_view(page, "warnings")
    until(page, "document.querySelector('.warninglist')?.textContent.includes('taken back')")


def test_the_journal_has_three_ways_and_copies_curl(story):
    open_view(story, "timeline")
    story.context.grant_permissions(["clipboard-read", "clipboard-write"])
    inside_kicks(story, wanted=True)
    story.click("#do-merge")
    until(story, "document.querySelector('.events')?.textContent.includes('KICK returns')")
    assert "DELETE slot 1" in text(story, ".events")
    story.click("button[data-way=timeline]")
    until(story, "document.querySelector('.events.timeline .bar') !== null")
    story.click("button[data-way=full]")
    until(story, "document.querySelector('.events.full')?.textContent.includes('kvm_')")
    story.fill("#journal-filter", "kvm_kick_all requested")
    until(story, "document.querySelectorAll('.events li').length === 1")
    story.click("#main button >> text=Hold")
    story.click(".events li button")
    until(story, "navigator.clipboard.readText().then((text) => text.startsWith('curl'))")


def test_spinning_vcpus_are_a_warning(story):
    open_view(story, "warnings")
    story.keyboard.press("k")
    until(story, "document.querySelector('.warninglist')?.textContent.includes('EINTR a second')")
    story.keyboard.press("r")
    until(story, "!kickstand.vm().kicked")


def test_cards_are_red_where_a_hole_was_met_and_clean_in_the_next_run(story, context):
    context.watch.expected = ("getImageData",)
    story.evaluate("kickstand.runner.run('rounds-none')")
    until(story, "kickstand.vm().fresh.some((holes) => holes > 0)")
    until(story, RED)
    until(story, "kickstand.runner.busy === 0")
    story.evaluate("kickstand.runner.run('rounds-kick')")
    until(story, "kickstand.vm().score.kick.changes > 0")
    assert story.evaluate("kickstand.vm().fresh.every((holes) => holes === 0) && kickstand.vm().torn > 0")


RED = """(() => {
    const canvas = document.querySelector('#main canvas.grid');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let red = 0;
    for (let n = 0; n < data.length; n += 4) red += data[n] === 0xc4 && data[n + 1] === 0x3d && data[n + 2] === 0;
    return red > 5000;
})()"""


def test_the_careless_spin_is_shown_as_a_price_with_a_way_out(story):
    story.keyboard.press("k")
    until(
        story,
        "/userspace spins: [\\d,]+ EINTR.s, the price of sticky/.test(document.querySelector('.board').textContent)",
    )
    story.click("#behave")
    until(story, "kickstand.vm().threads.every((thread) => thread?.behaviour === 'well')")
    until(story, "document.querySelector('.board .price').hidden")
    story.keyboard.press("r")
    until(story, "!kickstand.vm().kicked")


def test_race_and_cure_are_above_the_fold(story):
    story.set_viewport_size({"width": 1280, "height": 800})
    story.evaluate("kickstand.runner.run('merge-none')")
    until(story, "kickstand.vm().torn > 0 && document.querySelector('.memory .mark') !== null")
    story.wait_for_timeout(300)
    for selector in (".telling .primary:visible", "canvas.grid", ".panel.memory .mark", ".board"):
        box = story.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] <= 800, selector
