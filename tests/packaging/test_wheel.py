"""The wheel and the source archive: what is in them, and what they say of themselves."""

from __future__ import annotations

import email
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from flit_core import buildapi

from kickstand import __version__

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both, as ``python -m build`` does, with the backend that the project names."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / buildapi.build_wheel(str(folder)), folder / buildapi.build_sdist(str(folder))


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built[0]) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    return email.message_from_bytes(wheel.read(f"kickstand-{__version__}.dist-info/METADATA"))


def files_of(*folders):
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_runs_on_every_platform(built):
    assert built[0].name == f"kickstand-{__version__}-py3-none-any.whl"


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel):
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files_of("kickstand")
    assert {"kickstand/dashboard/index.html", "kickstand/api/static/docs.html"} <= set(wheel.namelist())


def test_the_wheel_has_the_licence(wheel):
    assert wheel.read(f"kickstand-{__version__}.dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_has_the_command_and_the_fixtures(wheel):
    points = ConfigParser()
    points.read_string(wheel.read(f"kickstand-{__version__}.dist-info/entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"kickstand": "kickstand.__main__:main"}
    assert dict(points["pytest11"]) == {"kickstand": "kickstand.pytest_plugin"}


def test_the_extras_are_those_of_the_readme(metadata):
    section = (ROOT / "README.md").read_text().split("## Install\n")[1].split("\n## ")[0]
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"cluster", "fast", "kvm"}
    assert all(f"`{extra}`" in section for extra in extras)


def test_the_readme_is_the_description(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_the_source_archive_can_be_tested(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = files_of("app", "tests", "docker", "docs", "benchmarks")
    wanted |= {"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "openapi.json", "pyproject.toml", ".dockerignore"}
    wanted |= {path.name for path in ROOT.glob("requirements*.lock")}
    assert wanted <= names


def test_the_build_backend_needs_nothing_that_the_lock_does_not_have():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [requirement.split()[0] for requirement in requires] == ["flit_core"]
    assert "\nflit-core==" in (ROOT / "requirements.lock").read_text()
