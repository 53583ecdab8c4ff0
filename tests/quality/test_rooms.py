"""Rooms that one can look around in: short files, few things in a folder, and no circle of imports but the kernel's."""

from collections import defaultdict

import pytest

from tests.quality.test_architecture import tracked_files

LONGEST, MOST = 350, 12
TABLES = {"app/core/uapi/__init__.py", "app/api/openapi/words.py", "app/scripts/differential/code/opcodes.py"}
LISTS = {
    "": "what tools look for at the root",
    "app": "the floors, and what people import or start by name",
    "app/core": "the kernel's files, by the kernel's names",
    "app/core/variants": "one file a variant: another is found without touching a file",
    "app/explore": "its rooms, and what stands on them",
    "benchmarks": "one file a question, started by name",
    "docs": "pages, which others link to; README sorts them by what one wants to do",
    "tests": "a folder for each of app's, and for each way to ask",
    "tests/exec/programs": "one file a program",
}
KNOT = ("kickstand.core.vm", "kickstand.core.vcpu", "kickstand.core.variants.base")


def test_files_are_short():
    long = {
        name: lines
        for name, text in tracked_files()
        if name.endswith((".py", ".js", ".c")) and (lines := text.count("\n")) > LONGEST
    }
    assert set(long) <= TABLES, long


def test_a_folder_has_about_ten_rooms_or_says_why_not():
    rooms = defaultdict(set)
    for name, _ in tracked_files():
        *folders, _ = parts = name.split("/")
        for depth in range(len(folders) + 1):
            rooms["/".join(parts[:depth])].add(parts[depth])
    crowded = {folder: len(inside) for folder, inside in rooms.items() if len(inside - {"__init__.py"}) > MOST}
    assert {folder: crowded[folder] for folder in crowded if folder not in LISTS} == {}
    assert set(LISTS) <= set(crowded), "whatever has room again is no list"


@pytest.mark.slow
def test_modules_import_each_other_in_the_kernels_own_knot_alone():
    graph = pytest.importorskip("grimp").build_graph("kickstand", cache_dir=None)  # type checkers' imports, too
    circles = [
        {module, imported}
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.find_shortest_chain(imported, module)
    ]
    knot = graph.find_downstream_modules(KNOT[0]) & graph.find_upstream_modules(KNOT[0]) | {KNOT[0]}
    assert set(KNOT) <= knot
    assert all(module.startswith("kickstand.core.") for module in knot)
    assert set().union(*circles) == knot
