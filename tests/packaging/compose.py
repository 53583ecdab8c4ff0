"""``make compose-test``: build the image, run the demo and its cluster, and look at them from outside.

Takes minutes and needs a container engine, so it is no part of ``make test``. The tests are one story, told in order:
each leaves the demo running, and the last takes it down.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from kickstand.client import Client

ROOT = Path(__file__).parents[2]
IMAGE = "docker_kickstand"
STAND_IN = "localhost/pybase:1"  # a local base image, for machines that reach no registry of images
PORT = 18_000
URL = f"http://127.0.0.1:{PORT}"
PATIENCE_S = 180
pytestmark = pytest.mark.timeout(1_200)


def output(*command, check=True, env=None):
    """What a command printed; a failure shows all of it."""
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def succeeds(*command):
    return (
        shutil.which(command[0]) is not None
        and not subprocess.run(command, check=False, capture_output=True).returncode
    )


class Engine:
    """Docker, or podman with podman-compose, as this machine has it."""

    def __init__(self):
        if succeeds("docker", "info") and succeeds("docker", "compose", "version"):
            self.name, self.compose_command = "docker", ("docker", "compose")
        elif succeeds("podman", "info"):
            self.name, self.compose_command = "podman", (sys.executable, "-m", "podman_compose")
        else:
            pytest.exit("no container engine here: neither `docker info` with `docker compose version`, nor `podman "
                        "info` succeeds", returncode=1)  # fmt: skip
        self.env = os.environ | {"KICKSTAND_PORT": str(PORT), "MATRIX_VCPUS": "1", "BUILDAH_LAYERS": "false"}

    def run(self, *arguments, check=True):
        return output(self.name, *arguments, check=check, env=self.env)

    def compose(self, *arguments, check=True):
        files = ("-f", "docker/compose.yaml", "--profile", "cluster")
        return output(*self.compose_command, *files, *arguments, check=check, env=self.env)

    def build(self):
        base = os.environ.get("BASE_IMAGE") or (STAND_IN if succeeds(self.name, "image", "inspect", STAND_IN) else "")
        arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
        if self.name == "podman":  # pip in there reaches what pip out here does
            shared = [path for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
            arguments += ["--network=host", "--format=docker", *(f"--volume={path}:{path}:ro" for path in shared)]
        self.run("build", "--tag", IMAGE, "--file", "docker/Dockerfile", *arguments, ".")

    def left(self):
        """What of the demo there is: containers, networks, volumes."""
        kinds = (("ps", "-a", "--format={{.Names}}"), ("network", "ls", "--format={{.Name}}"),
                 ("volume", "ls", "--format={{.Name}}"))  # fmt: skip
        names = "\n".join(self.run(*kind) for kind in kinds).split()
        return [name for name in names if re.match(r"kickstand[_-]", name)]


@pytest.fixture(scope="module")
def engine():
    found = Engine()
    assert not found.left(), "a demo is running here already, or was not taken down with its volumes"
    found.build()
    try:
        found.compose("up", "-d", "--no-build")
        yield found
    finally:
        found.compose("down", "--volumes", check=False)


@pytest.fixture
def client(engine):
    until(healthy, "the server answers")
    token = engine.compose("exec", "-T", "kickstand", "cat", "/run/kickstand/token").strip()
    with Client(URL, token=token, timeout=60) as made:
        yield made


def healthy():
    try:
        return httpx.get(f"{URL}/healthz", timeout=5).is_success
    except httpx.TransportError:
        return False


def until(condition, what):
    """Wait for something outside; containers take their time."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"within {PATIENCE_S} s it did not come true that {what}"
        time.sleep(0.5)
    return found


def last(engine, service, pattern):
    """The numbers in the last line of a service's log that fits."""
    found = re.findall(pattern, engine.compose("logs", service, check=False))
    return [int(number) for number in found[-1]] if found else [0]


def counters(client):
    vcpus = client.vcpus()["vcpus"]
    return {name: sum(vcpu["counters"][name] for vcpu in vcpus) for name in ("exits", "mmio", "eintr")}


def kicks(client):
    return float(
        re.search(r'^kickstand_vm_kicks_total\{vm="default"\} (\S+)', client.http.get("/metrics").text, re.MULTILINE)[1]
    )


def both_work(client):
    """Guests go on and merges go on, from now."""
    exits, before = counters(client)["exits"], kicks(client)
    until(lambda: counters(client)["exits"] > exits + 50, "guests run")
    until(lambda: kicks(client) > before + 10, "memory is merged")


def test_guests_run_and_merges_happen_without_a_spurious_exit(engine, client):
    both_work(client)
    assert counters(client)["mmio"] == 0
    assert counters(client)["eintr"] > 0  # the kicks met vCPUs that were in KVM_RUN
    until(lambda: last(engine, "vmm", r"(\d+) exits, \d+ EINTR, 0 spurious")[0] > 0, "the VMM says what it saw")
    until(lambda: last(engine, "kicker", r"(\d+) merges and splits")[0] > 0, "the kicker says what it did")
    assert "spurious exit:" not in engine.compose("logs", "vmm", check=False)


def test_the_dashboard_wants_the_code_of_the_log_and_the_api_its_token(engine, client):
    code = re.findall(r"http://127\.0\.0\.1:8000/#code=([\w-]+)", engine.compose("logs", "kickstand"))[-1]
    with httpx.Client(base_url=URL, timeout=60) as browser:
        assert "<html" in browser.get("/").text
        assert browser.get("/vm").status_code == 401
        assert browser.post("/session", json={"code": code}).status_code == 204
        assert browser.get("/vm").json()["id"] == "default"


def test_the_server_is_confined(engine, client):
    inside = """
import json, os, pathlib
status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
try:
    pathlib.Path("/opt/x").touch()
    writable = True
except OSError:
    writable = False
print(json.dumps([os.getuid(), status["CapEff"], status["CapBnd"], status["NoNewPrivs"], writable]))
"""
    told = engine.compose("exec", "-T", "kickstand", "python", "-c", inside)
    assert json.loads(told.strip().splitlines()[-1]) == [10001, "0" * 16, "0" * 16, "1", False]


def test_a_kill_under_load_loses_nothing(engine, client):
    before = client.state()
    engine.compose("kill", "-s", "KILL", "kickstand")
    engine.compose("start", "kickstand")
    until(healthy, "the server is back")
    both_work(client)
    assert client.state()["epoch"] == before["epoch"]
    assert client.state()["seq"] > before["seq"]
    assert client.regions()["regions"][0] == before["memory_regions"][0]
    assert counters(client)["mmio"] == 0
    assert "spurious exit:" not in engine.compose("logs", "vmm", check=False)


def test_the_matrix_on_the_cluster_equals_the_local_one(engine):
    def verdicts(*options):
        command = ("kickstand", "explore", "--matrix", "--vcpus=1", "--json", *options)
        told = engine.compose("run", "--rm", "-T", "matrix", *command, check=False)  # 1: some are violated
        cells = json.loads(told[told.index("{") : told.rindex("}") + 1])["cells"]
        return [{name: value for name, value in cell.items() if name != "seconds"} for cell in cells]

    local, cluster = verdicts(), verdicts("--cluster=tcp://scheduler:8786")
    assert {cell["verdict"] for cell in local} == {"holds", "violated"}
    assert cluster == local


def test_two_workers_shared_the_matrix(engine):
    until(lambda: "violated" in engine.compose("logs", "matrix", check=False), "the matrix is decided")
    registered = re.findall(r"Register worker.*?(tcp://[\d.]+:\d+)", engine.compose("logs", "scheduler", check=False))
    assert len(set(registered)) == 2


@pytest.mark.parametrize("service", ["vmm", "kicker", "kickstand"])
def test_sigterm_reaches(service, engine, client):
    engine.compose("stop", "--timeout", "60", service)
    name = next(name for name in engine.left() if re.fullmatch(rf"kickstand[_-]{service}[_-]1", name))
    assert engine.run("inspect", "--format={{.State.ExitCode}}", name).strip() in {"0", "143"}  # 137 is SIGKILL


def test_down_leaves_nothing(engine):
    engine.compose("down", "--volumes")
    assert not engine.left()
