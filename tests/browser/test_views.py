"""Every view, with live guests behind it."""

from urllib.request import Request, urlopen

from tests.browser.browser import audit, until, visit

# Guest and halted, as painted.
BOTH_COLOURS = """(() => {
    const canvas = document.querySelector('#main canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let n = 0; n < data.length; n += 4) seen.add((data[n] << 16) | (data[n + 1] << 8) | data[n + 2]);
    return seen.has(0x2bb58a) && seen.has(0xcc79a7);
})()"""
VIEWS = ("overview", "fleet", "table", "lock", "timeline", "memory", "explorer", "journal", "warnings")


def open_view(page, name):
    page.click(f"#views a[data-view={name}]")
    until(page, f"document.querySelector('#main > .view.{name}') !== null")


def text(page, selector="#main"):
    return page.inner_text(selector)


def test_a_newcomer_sees_vcpus_move_and_finds_race_and_cure(context, server):
    page = context.new_page()
    page.emulate_media(reduced_motion="no-preference")
    visit(page, server.url)
    until(page, "kickstand.vm()?.id === 'demo' && kickstand.vm().total('exits') > 1")
    until(page, "document.querySelector('#main canvas')?.getAttribute('aria-label').includes('4 vCPUs of demo')")
    assert "the story" in page.get_by_role("region", name="The story").get_attribute("aria-label").lower()
    page.click("#story-race")
    until(page, r"/\d+ torn access/.test(document.querySelector('#story-race ~ .found').textContent)")
    torn = page.evaluate("kickstand.vm().torn")
    page.click("#story-kick")
    until(page, "document.querySelector('#story-kick').textContent === 'Resume' && kickstand.vm().kicked")
    until(page, "document.querySelector('#story-kick ~ .found').textContent.includes('out of KVM_RUN in')")
    page.click("#story-kick")
    until(page, "document.querySelector('#story-kick').textContent === 'Kick' && kickstand.runner.busy === 0")
    page.click("#story-cure")
    until(page, "document.querySelector('#story-cure ~ .found').textContent.includes('no access was torn')")
    assert page.evaluate("kickstand.vm().torn") == torn
    until(page, "document.querySelector('#story-run').hidden")
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
    open_view(story, "fleet")
    until(story, "document.querySelector('#main canvas').getAttribute('aria-label').includes('1 halted')")
    shown = text(story, ".legend").split()
    assert shown[::2] == ["user", "waiting", "kernel", "guest", "exiting", "halted", "blocked"]
    assert sum(map(int, shown[1::2])) == 4
    assert story.locator(".legend svg.glyph").count() == 7
    until(story, BOTH_COLOURS)


def test_a_vcpu_can_be_chosen_and_run(story):
    open_view(story, "fleet")
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
    open_view(story, "table")
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
    story.click("#do-merge-none")
    until(story, "kickstand.vm().torn > 0")
    until(story, "document.querySelector('.story.torn') !== null && document.querySelector('.strip .mark') !== null")
    until(story, "document.querySelectorAll('.row .hole').length >= 3")
    assert "RAM before and after" in text(story, ".rows")
    torn = story.evaluate("kickstand.vm().torn")
    story.click("#do-split-kick")
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
    open_view(story, "lock")
    story.select_option("#lock-episode", "1")
    until(story, "kickstand.cursor !== null")
    for _ in range(4):
        story.locator("#main button", has_text="Step").click()
    until(story, "document.querySelector('#main .story').textContent.includes('waits for the write side')")
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
    open_view(page, "lock")
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


def test_the_explorer_fills_its_matrix_and_steps_through_a_counterexample(page):
    """With the real explorer behind the page."""
    open_view(page, "explorer")
    page.click("text=Variants, behaviours and properties")
    for name in ("none", "sticky", "global_rwsem", "missing_slot", "bounded_busy", "kick_returns", "resume_runs"):
        page.uncheck(f"input[value={name}]")
    page.click("#explore")
    until(page, "document.querySelectorAll('.matrix td').length === 4")
    until(page, "document.querySelector('#main .story').textContent.startsWith('done: 4 of 4 cells decided')")
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
    assert "1 torn access" in seen[-1]["map"]
    assert {"KICK waits", "window: nobody inside"} <= {each["kick"] for each in seen}
    assert audit(page) == []
    page.locator(".lane i").first.click()
    assert f"Step 1 of {length}" in text(page, ".counterexample .step")
    assert "kickstand explore --replay ks1" in text(page, ".counterexample")
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


def test_the_journal_has_three_ways_and_copies_curl(story):
    open_view(story, "journal")
    story.context.grant_permissions(["clipboard-read", "clipboard-write"])
    story.click("#do-merge-kick")
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


def test_every_view_is_a_link(page, server):
    for view in VIEWS:
        page.goto("about:blank")
        visit(page, f"{server.url}#view={view}")
        until(page, f"document.querySelector('#main > .view.{view}') !== null")
        assert page.locator("#views a[aria-current=page]").get_attribute("data-view") == view
