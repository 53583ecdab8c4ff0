"""The API's page: operations by topic, fields as tables, command lines that run, buttons that send."""

import json
import shutil
import subprocess

import pytest

from tests.browser.axe import AXE, axe
from tests.browser.browser import until


@pytest.fixture
def docs(server, chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: complaints.append(f"{message.text} {message.location}") if message.type == "error" else None,
    )
    page.goto(f"{server.url}docs")
    until(page, "document.querySelectorAll('#operations details').length > 50")
    yield page
    assert [text for text in complaints if "/vcpu/77" not in text] == []
    context.close()


def opened(page, name):
    page.evaluate(f"location.hash = '{name}'")
    until(page, f"document.querySelector('#{name} .inside')")
    return page.locator(f"#{name}")


def test_each_operation_is_there_once_under_its_topic(docs):
    spec = docs.evaluate("fetch('/openapi.json').then((answer) => answer.json())")
    paths = [
        (path, method) for path, item in spec["paths"].items() for method in item if isinstance(item[method], dict)
    ]
    assert docs.locator("#operations details").count() == len(paths)
    assert docs.locator("#operations section").count() == len(spec["tags"])
    assert docs.locator("#shapes details").count() == len(spec["components"]["schemas"])
    assert opened(docs, "kick").inner_text().count("/vm/kick") == 1  # the alias is told, not listed


def test_fields_are_a_table_and_the_filter_finds(docs):
    region = opened(docs, "set_memory_region")
    assert (
        "LOG_DIRTY_PAGES" in region.locator("table[aria-label], [aria-label='Fields of the body'] table").inner_text()
    )
    docs.fill("#filter", "KVM_RUN")
    shown = docs.locator("#operations details:not([hidden])")
    assert 0 < shown.count() < 20
    assert docs.locator("#run").is_visible()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_a_command_line_that_is_shown_runs(docs):
    for name in ("create_host_memory", "set_program", "get_vm", "kick", "resume"):
        line = opened(docs, name).locator(".curl").inner_text()
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True, timeout=60)
        assert "errno_value" not in json.loads(done.stdout), (line, done.stdout)


def test_a_button_sends_what_is_filled_in_and_shows_the_answer(docs):
    vcpu = opened(docs, "get_vcpu")
    vcpu.locator("input[aria-label=id]").fill("2")
    assert "/vms/default/vcpu/2'" in vcpu.locator(".curl").inner_text()
    vcpu.locator(".run").click()
    until(docs, "document.querySelector('#get_vcpu .answer pre')")
    assert json.loads(vcpu.locator(".answer pre").inner_text())["id"] == 2
    vcpu.locator("input[aria-label=id]").fill("77")
    vcpu.locator(".run").click()
    until(docs, "document.querySelector('#get_vcpu .answer .refused')")
    assert "ENOENT" in vcpu.locator(".answer pre").inner_text()


def test_a_stream_is_listened_to_for_a_moment(docs):
    events = opened(docs, "stream_vm")
    events.locator(".run").click()
    until(docs, "document.querySelector('#stream_vm .answer pre')?.textContent.includes('snapshot')")


def test_shapes_are_links_and_an_address_opens_what_it_names(docs, server):
    opened(docs, "run").locator("a[href='#shape-RunDone']").first.click()
    until(docs, "document.querySelector('#shape-RunDone[open] .inside')")
    docs.goto(f"{server.url}docs#shape-Step")
    until(docs, "document.querySelector('#shape-Step[open]')?.textContent.includes('StepRead')")


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_wider_than_a_phone(docs, width):
    docs.set_viewport_size({"width": width, "height": 844})
    for name in ("set_sregs", "run", "play_script", "shape-Event"):
        opened(docs, name)
    assert docs.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(not AXE, reason="no axe-core: `make check` installs it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_an_accessibility_fault(server, chromium, scheme):
    context = chromium.new_context(color_scheme=scheme, bypass_csp=True)  # for the checker's own script
    page = context.new_page()
    for path in ("docs#set_memory_region", "docs#shape-Event", "problems", "problems/einval"):
        page.goto(f"{server.url}{path}")
        page.wait_for_load_state("networkidle")
        assert axe(page) == [], path
    context.close()
