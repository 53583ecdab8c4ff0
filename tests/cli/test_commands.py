"""The command line as its user runs it: real processes against a real server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kickstand.client import AsyncClient, Client, KickstandError, region
from kickstand.commands.demo import server
from kickstand.commands.demo.story import Proved, Row
from kickstand.commands.demo.told import HEADS, line, summary
from tests.long import either

PAGE = 4096


@pytest.fixture(scope="module")
def url():
    with server("--allow-reset") as running:
        yield running


def kickstand(*arguments, url=None, check=True, stdin=None):
    options = ["--url", url] if url else []
    command = [sys.executable, "-m", "kickstand", *arguments, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, input=stdin)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def answer(*arguments, url):
    return json.loads(kickstand(*arguments, "--json", url=url).stdout)


@pytest.fixture
def vm(url, request):
    name = request.node.name[:40].replace("[", "-").replace("]", "")
    with Client(url, vm=name) as client:
        client.create_vm(id=name, vcpus=2)
        yield client
        client.delete()


def test_a_kick_from_the_shell_ends_a_run_from_the_shell(url, vm):
    run = subprocess.Popen(
        [sys.executable, "-m", "kickstand", "vcpu", "run", "0", "--vm", vm.vm, "--json", "--url", url],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while vm.vcpu(0)["state"] != "guest":
        pass
    kicked = answer("vm", "kick", "--vm", vm.vm, url=url)
    assert (kicked["changed"], kicked["vcpus_stopped"]) == (True, 1)
    out, _ = run.communicate(timeout=30)
    assert json.loads(out)["cause"] == "userspace_kick"
    assert answer("vm", "resume", "--vm", vm.vm, url=url)["cleared"] == 2


def test_memory_commands_reach_the_guest(url, vm):
    made = answer("memory", "allocate", "0x2000", "--vm", vm.vm, url=url)
    kickstand("memory", "set", "0", "0", "0x2000", made["userspace_addr"], "--flags", "1", "--vm", vm.vm, url=url)
    kickstand("vcpu", "program", "0", '[["write", 4096, 255, 1], ["hlt"]]', "--vm", vm.vm, url=url)
    assert answer("vcpu", "run", "0", "--vm", vm.vm, url=url)["exit_reason"] == "KVM_EXIT_HLT"
    assert answer("memory", "dirty-log", "0", "--vm", vm.vm, url=url) == {"dirty_pages": [1]}
    at = hex(int(made["userspace_addr"], 16) + PAGE)
    assert kickstand("memory", "read", at, "2", "--vm", vm.vm, url=url).stdout == "ff00\n"
    kickstand("memory", "write", at, "beef", "--vm", vm.vm, url=url)
    assert vm.read_host(at, 2) == b"\xbe\xef"
    operations = json.dumps([region(0, 0, 0, 0), region(3, 0, PAGE, made["userspace_addr"])])
    done = kickstand("memory", "transaction", "-", "--vm", vm.vm, "--json", url=url, stdin=operations)
    assert [result["ret"] for result in json.loads(done.stdout)["results"]] == [0, 0]
    assert "\n   3             0x0  0x1000" in kickstand("memory", "list", "--vm", vm.vm, url=url).stdout


def test_tables_name_states_in_words(url, vm):
    assert "· user" in kickstand("vcpu", "list", "--vm", vm.vm, url=url).stdout
    assert "user" in kickstand("top", "--count", "1", "--vm", vm.vm, url=url).stdout
    assert vm.vm in kickstand("vm", "list", url=url).stdout


def test_events_start_with_a_snapshot_and_go_on_in_order(url, vm):
    watching = subprocess.Popen(
        [sys.executable, "-m", "kickstand", "events", "--limit", "3", "--json", "--vm", vm.vm, "--url", url],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = json.loads(watching.stdout.readline())
    assert first["event"] == "snapshot"
    vm.kick()
    out, _ = watching.communicate(timeout=30)
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "kvm_kick_all"
    assert [event["data"]["seq"] for event in events] == sorted(event["data"]["seq"] for event in events)


def test_a_refused_call_is_one_line_and_status_1(url):
    done = kickstand("vm", "kick", "--vm", "nobody", url=url, check=False)
    assert done.returncode == 1
    assert done.stderr == "kickstand: ENODEV: there is no virtual machine 'nobody'\n"


def test_no_server_is_one_line_that_says_what_to_do():
    done = kickstand("vm", "list", url="http://127.0.0.1:9", check=False)
    assert done.returncode == 1
    assert "kickstand serve" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["vcpu", "run"], ["vcpu", "run", "x"], ["memory", "set", "0", "zz", "1", "1"], ["nope"]]
)
def test_bad_usage_is_status_2(arguments):
    assert kickstand(*arguments, check=False).returncode == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--variant", "wrong"], "sticky"),
        (["--engine", "wrong"], "script"),
    ],
)
def test_a_server_that_cannot_serve_says_why_in_one_line(options, said):
    done = kickstand("serve", "--port", "0", *options, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_client_commands_do_not_load_the_server():
    program = (
        "import sys, kickstand.cli, kickstand.client, kickstand.commands.client.watch, kickstand.commands.demo\n"
        "print([name for name in ('fastapi', 'pydantic', 'uvicorn', 'unicorn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_variant_of_a_users_own_is_served_without_another_edit(tmp_path):
    path = tmp_path / "polite.py"
    path.write_text(
        "from kickstand.core.variants.sticky import Sticky\n\n\n"
        'class Polite(Sticky):\n    """Looks at the exit first."""\n\n    exit_test_site = "after_r"\n'
    )
    with server("--variant-module", str(path)) as own, Client(own, vm="mine") as client:
        assert {"name": "polite", "summary": "Looks at the exit first."} in [
            {key: variant[key] for key in ("name", "summary")} for variant in client.kvm()["variants"]
        ]
        client.create_vm(id="mine", vcpus=1, variant="polite")
        assert client.state()["variant"] == "polite"


def test_the_sync_client_raises_the_servers_problem(vm):
    with pytest.raises(KickstandError) as caught:
        vm.create_vcpu(0)
    assert (caught.value.errno, caught.value.status) == ("EEXIST", 409)
    assert caught.value.problem["ioctl"] == "KVM_CREATE_VCPU"


async def test_the_async_client_runs_kicks_and_streams(url):
    async with AsyncClient(url, vm="async") as client:
        await client.create_vm(id="async", vcpus=1, programs=[[["out", 1, 7]]])
        events = client.events()
        assert (await anext(events))["event"] == "snapshot"
        assert (await client.run(0))["io"]["data"] == "07"
        assert (await anext(events))["data"]["seq"] > 0
        await events.aclose()
        await client.delete()


@pytest.mark.slow
def test_the_demo_comes_out_as_the_explorer_says():
    engines = either(["script"], ["script", "x86"])
    asked = [word for engine in engines for word in ("--engine", engine)]
    done = kickstand("demo", "--rounds", "2", *asked, "--json", check=False)
    rows = json.loads(done.stdout)["rows"]
    assert done.returncode == 0, [row for row in rows if not row["as_expected"]]
    torn = {(row["engine"], row["variant"]): row["spurious_mmio"] for row in rows}
    for engine in engines:
        assert [torn[engine, variant] for variant in ("sticky", "holds", "accel_blocker")] == [0, 0, 0]
        assert torn[engine, "none"] > 0
        assert torn[engine, "signal"] > 0
    assert all((row["spurious_mmio_unprotected"] > 0) is (row["variant"] != "inferred") for row in rows)
    assert any(row["eintr_spins"] for row in rows if row["variant"] == "sticky")


def test_the_demo_fails_when_an_outcome_differs():
    proved = Proved(clean=True, returns=True)
    clean, torn = (Row("script", "sticky", proved, 5, torn_without=5, torn_with=torn) for torn in (0, 1))
    assert clean.as_expected
    assert not torn.as_expected
    assert "Not as the explorer says: sticky on script." in summary([clean, torn])
    assert line(torn).endswith("differs")
    assert not Row("script", "sticky", proved, 5).as_expected
    assert not Row("script", "none", Proved(clean=False, returns=True), 5, torn_without=5).as_expected


def test_a_kick_that_hangs_is_expected_only_where_the_explorer_says_that_it_may():
    for returns, torn, expected in [(False, 0, True), (False, 3, True), (True, 0, False), (True, 3, False)]:
        row = Row("x86", "own", Proved(clean=False, returns=returns), 5, torn_without=5, torn_with=torn, stuck=1)
        assert row.as_expected is expected
        assert "hung" in line(row)


def test_the_demo_says_of_a_variant_without_a_kick_that_it_is_the_change_that_may_hang():
    proved = Proved(clean=True, returns=False)
    kicked, inferred = (Row("script", name, proved, 5, torn_without=5) for name in ("sticky", "inferred"))
    kicked.drains_ns = [2_000]
    told = "\n".join(summary([kicked, inferred]))
    assert "the kick may hang       sticky" in told
    assert "the change may hang     inferred" in told
    assert "- no kick is needed" in told
    assert "- no kick is needed" not in "\n".join(summary([kicked]))


def test_the_demo_fits_into_80_columns():
    row = Row("script", "clear_before_up_write", Proved(clean=False, returns=False), 400, torn_without=9, torn_with=9)
    row.drains_ns, row.spins, row.stuck, row.kicked_by = [123_456_789] * 3, 9_999_999, 1, "accel_blocker"
    names = ["a_rather_long_name_of_a_variant" + str(number) for number in range(9)]
    rows = [row, *(Row("x86", name, row.proved, 5, torn_without=1, torn_with=1) for name in names)]
    assert max(map(len, [line(row), *HEADS, *summary(rows)])) <= 80
