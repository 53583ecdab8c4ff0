"""Browser tests: skipped as a whole, with the reason, where no browser can be had."""

from urllib.request import Request, urlopen

import pytest

from tests.browser.browser import NETWORK_CHANGED, browsing, missing, opened, serving, until

REASON = missing()


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/browser/" in str(item.path):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))  # a browser on a busy machine is slow, not wrong
            if REASON:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="package")
def server():
    with serving("--allow-reset") as running:
        yield running


@pytest.fixture(scope="package")
def chromium():
    with browsing() as browser:
        yield browser


class Watch:
    """What a page must not do: complain, or talk to another host."""

    def __init__(self, context):
        self.complaints = []
        self.requests = []
        self.refusals = []
        self.expected = ()
        context.on("console", self._console)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("response", self._response)

    def _console(self, message):
        if message.type in ("error", "warning") and NETWORK_CHANGED not in message.text:
            self.complaints.append(f"{message.text} at {message.location.get('url')}")

    def _response(self, response):
        if response.status >= 400:
            self.refusals.append(f"{response.status} {response.request.method} {response.url}")

    def check(self, url):
        strangers = [asked for asked in self.requests if not asked.startswith((url, "blob:", "data:"))]
        assert not strangers
        complaints = [text for text in self.complaints if not any(known in text for known in self.expected)]
        assert not complaints, f"answers that were refusals: {self.refusals}"


@pytest.fixture
def context(chromium, server):
    """A browser of one's own: cookies, tabs and locks of no other test."""
    urlopen(Request(server.url + "reset", method="POST")).close()
    # Canvases drawn five times a second rather than sixty leave the machine to the tests.
    made = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    made.watch = Watch(made)
    yield made
    made.close()
    made.watch.check(server.url.rstrip("/"))


@pytest.fixture
def page(context, server):
    """The dashboard, with its stream open. Its address names a view, so that the story does not begin by itself."""
    made = context.new_page()
    opened(made, f"{server.url}#view=overview")
    return made


@pytest.fixture
def story(page):
    """The dashboard with the story's VM, four vCPUs running, and its end afterwards."""
    page.evaluate("kickstand.runner.story()")
    until(page, "kickstand.vm()?.id === 'demo' && kickstand.vm().running === 4")
    until(page, "kickstand.vm().total('exits') > 0 && document.querySelector('.telling')")
    return page
