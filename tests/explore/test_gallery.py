"""The gallery is what the explorer prints now, not what somebody drew."""

from pathlib import Path

import pytest

from kickstand.explore.evidence.columns import WIDTH
from kickstand.explore.reports.gallery import sections

PAGE = Path(__file__).parents[2] / "docs" / "gallery.md"


@pytest.mark.slow
def test_the_committed_gallery_is_what_the_explorer_finds():
    page = PAGE.read_text()
    for section in sections():
        assert section in page


def test_its_columns_fit_into_a_mail():
    drawn = PAGE.read_text().split("```")[1::2]
    assert drawn
    assert all(len(line) <= WIDTH for block in drawn for line in block.splitlines())


def test_the_page_about_the_explorer_shows_one_of_them():
    drawn = PAGE.read_text().split("```\n")[1::2]
    page = (PAGE.parent / "explorer.md").read_text()
    assert any(block in page for block in drawn)
