"""The gallery is what the explorer prints now, not what somebody drew."""

from pathlib import Path

import pytest

from app.explore.columns import WIDTH
from app.explore.gallery import sections

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


def test_the_readme_shows_one_of_them():
    drawn = PAGE.read_text().split("```\n")[1::2]
    readme = (PAGE.parents[1] / "README.md").read_text()
    assert any(block in readme for block in drawn)
