"""A server of our own, and the distribution's Chromium to look at it with."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S = 60
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"
EXPLORING_S = 400  # without a word: it has a process of its own, which has to import everything first
PATIENCE_S = 40  # far more than anything takes: a busy machine is no failure
# The first is needed where tests run as root, the second where /dev/shm is small, as in a container.
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage")


def missing():
    """Why there can be no browser test here; None if there can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "the Python package playwright is not installed"
    if chromium() is None:
        return "no Chromium found: install the package chromium, or set KICKSTAND_CHROMIUM to the path of one"
    return None


def chromium():
    """The path of a Chromium; playwright's own download is never used."""
    given = os.environ.get("KICKSTAND_CHROMIUM")
    if given:
        return given if os.access(given, os.X_OK) else None
    return next((path for path in map(shutil.which, CANDIDATES) if path), None)


class Server:
    """`kickstand serve` as a process; its port stays the same over a restart."""

    def __init__(self, *options):
        self.options = options
        self.port = 0
        self.process = None
        self.url = ""

    def start(self):
        command = [sys.executable, "-m", "kickstand", "serve", "--port", str(self.port), "--ephemeral", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + START_S
        for line in self.process.stdout:
            if found := re.search(r"http://[\w.\[\]:-]+:(\d+)/\S*", line):
                self.url, self.port = found[0], int(found[1])
                return self
            if time.monotonic() > end:
                break
        raise RuntimeError("the server did not say where it serves")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(START_S)
        self.process.stdout.close()

    def pause(self):
        """Silence without closing anything, as a hung machine."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def serving(*options):
    server = Server(*options).start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def browsing():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def visit(page, url):
    """Open the dashboard; again if a network interface came or went, at which Chromium drops what it loads."""
    dropped = []
    page.on("requestfailed", lambda request: dropped.append(request) if NETWORK_CHANGED in request.failure else None)
    page.goto(url)
    while dropped:
        dropped.clear()
        page.reload()


def opened(page, url):
    """Open the dashboard and wait until it knows what was and what is, and is connected."""
    visit(page, url)
    settled(page)


def settled(page):
    until(page, "window.kickstand?.ready && kickstand.live.status === 'live'")


def audit(page):
    """The page's accessibility faults."""
    return page.evaluate((Path(__file__).parent / "audit.js").read_text())


def until(page, expression):
    """Ask the page until an expression is true; the page's own policy forbids playwright's way, which is eval."""
    return eventually(page, lambda: page.evaluate(expression), expression)


def explored(page):
    """Wait for the end of an exploration, which takes what the machine needs; it must only go on."""
    told = ""
    while not told.startswith("done"):
        told = eventually(page, lambda before=told: _news(page, before), f"an end, after {told!r}", EXPLORING_S)
    return told


def _news(page, before):
    told = page.inner_text("#main .story")
    return told != before and told


def eventually(page, condition, what, patience_s=PATIENCE_S):
    """Ask until a condition holds, letting the page go on meanwhile. ``what`` is said if it never does."""
    end = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_s} s: {what}")
        page.wait_for_timeout(40)
    return found
