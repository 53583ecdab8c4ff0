"""``--cluster``: the cells of a question on Dask workers, which have Kickstand but none of the user's files."""

import io
import json
import logging

import pytest
from rich.console import Console

from kickstand.explore.command import Options, run
from kickstand.explore.matrix import Matrix
from kickstand.explore.question import Question

pytestmark = pytest.mark.slow
distributed = pytest.importorskip("distributed", reason="the optional extra `cluster` is not installed")
for handler in logging.getLogger("distributed").handlers:
    handler.setLevel(logging.CRITICAL)  # what is said of ended workers comes when pytest has closed the file it goes to

WORLD = """
name: halting
vms: [{id: vm, memory_regions: [{slot: 0, gpa: 0x1000, size: 0x1000}], program: [[choose, [[compute, 1]], [[hlt]]]]}]
vmms: [{operations: [{op: kick}, {op: resume}]}]
"""

VARIANT = '''
from kickstand.core.variants.sticky import Sticky


class Mine(Sticky):
    """As posted, and the exit test is forgotten."""

    async def exit_test(self, vcpu):
        return False
'''


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


def cells(cluster=None, **question):
    console = Console(file=io.StringIO(), width=200)
    run(Options(Question(**question), json=True, cluster=cluster), console)
    return [
        {name: value for name, value in cell.items() if name != "seconds"}
        for cell in json.loads(console.file.getvalue())["cells"]
    ]


def test_a_cluster_gives_the_same_matrix_as_one_process(cluster):
    question = {"variants": ("sticky", "holds"), "properties": ("lost_exit", "deadlock", "progress")}
    assert cells(cluster=cluster, **question) == cells(**question)


def test_a_users_files_travel_to_workers_that_do_not_have_them(cluster, tmp_path):
    module, world = tmp_path / "mine.py", tmp_path / "world.yaml"
    module.write_text(VARIANT)
    world.write_text(WORLD)
    question = Matrix(
        Question(str(world), ("mine",), ("well",), properties=("lost_exit", "kick_returns"), variant_module=str(module))
    )
    here = [verdict.json() for verdict in question.run()]
    assert [cell["verdict"] for cell in here] == ["vacuous", "violated"]
    module.unlink()
    world.unlink()
    with distributed.Client(cluster) as client:
        there = [verdict.json() for verdict in Matrix(*question.cells).run(client.get_executor())]
    assert [(cell["verdict"], cell["states"], cell["token"]) for cell in there] == [
        (cell["verdict"], cell["states"], cell["token"]) for cell in here
    ]
