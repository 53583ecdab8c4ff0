"""The dashboard's views, as a reader goes through them."""

from tests.browser.browser import until

VIEWS = ("overview", "vcpus", "timeline", "memory", "explorer", "warnings")


def open_view(page, name):
    page.click(f"header a[data-view={name}]")
    until(page, f"document.querySelector('#main > .view.{name}') !== null")


def open_table(page):
    open_view(page, "vcpus")
    page.click("#as-table")
    until(page, "document.querySelector('#main .vcpus tbody tr') !== null")


def more(page):
    """The rest of the buttons."""
    page.wait_for_selector("#more")
    page.evaluate("document.querySelector('#more').open = true")
    page.wait_for_selector("#do-rounds")


def inside_kicks(page, wanted):
    page.set_checked("#inside", wanted)


def text(page, selector="#main"):
    return page.inner_text(selector)
