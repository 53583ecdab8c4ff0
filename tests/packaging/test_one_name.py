"""One name: the sources lie in app/, what is imported is kickstand, and a neighbour's own app/ is left alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest
from flit_core import buildapi

ROOT = Path(__file__).parents[2]
IS_CHECKOUT = (ROOT / "app").is_dir()

NEIGHBOUR = {
    "app/__init__.py": "",
    "app/core.py": "ANSWER = 42\n",
    "tests/test_theirs.py": """
import app.core
import kickstand.core.uapi
import pytest


def test_their_app_is_theirs():
    assert app.core.ANSWER == 42
    assert not hasattr(app, "create_app")


@pytest.mark.parametrize("name", ["kickstand_server", "kickstand_vm"])
def test_the_fixtures_are_there(name, request):
    assert request.getfixturevalue(name) is not None
""",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What ``pip install`` of the wheel leaves in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = folder / buildapi.build_wheel(str(folder))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def neighbour(tmp_path):
    """A project that has a package ``app`` of its own."""
    for name, text in NEIGHBOUR.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.skipif(not IS_CHECKOUT, reason="no checkout: the sources' own folder is not here")
def test_in_a_checkout_both_names_are_one_folder():
    assert (ROOT / "kickstand").samefile(ROOT / "app")


@pytest.mark.slow
def test_nothing_of_the_wheel_is_named_app(site):
    assert [path.name for path in site.iterdir() if not path.name.endswith(".dist-info")] == ["kickstand"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_a_project_with_an_app_of_its_own_is_tested_beside_the_wheel(mode, site, neighbour):
    # Without site.py no .pth file leads back to this checkout: there are the wheel and its dependencies.
    packages = [str(site), sysconfig.get_path("purelib")]
    program = f"import sys; sys.path[1:1] = {packages!r}; import pytest; sys.exit(pytest.main())"
    others = {point.name for point in entry_points(group="pytest11")} - {"kickstand"}  # of this environment's tools
    options = ["-q", "-W error", "-o pythonpath=.", f"--import-mode={mode}", *(f"-p no:{name}" for name in others)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(packages), "PYTEST_ADDOPTS": " ".join(options)}
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=neighbour, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not IS_CHECKOUT, reason="no checkout: the sources' own folder is not here")
def test_what_people_of_fastapi_try_first_starts_a_server(tmp_path):
    command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", "0", "--no-access-log"]
    env = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.:]+", line)))
            assert httpx.get(f"{url}/vm").json()["id"] == "default"
        finally:
            server.terminate()
