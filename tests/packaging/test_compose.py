"""What the container files promise, as far as it can be read: ``make compose-test`` runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kickstand.commands.demo import server

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if re.match(r"[A-Z]+ ", line)]
every_service = pytest.mark.parametrize("name", SERVICES)


def test_the_services_and_profiles_are_those_of_the_design():
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {name for name, found in profiles.items() if not found} == {"token", "kickstand", "vmm", "kicker"}
    assert {name for name, found in profiles.items() if found == ["cluster"]} == {"scheduler", "worker", "matrix"}
    assert {name for name, found in profiles.items() if found == ["metrics"]} == {"prometheus"}
    assert SERVICES["worker"]["scale"] == 2


@every_service
def test_ports_are_open_to_this_machine_only(name):
    ports = SERVICES[name].get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name in {"kickstand", "prometheus"})


@every_service
def test_a_service_may_do_nothing_but_its_work(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["stop_grace_period"] == "5s"
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)


def test_one_image_serves_every_service_of_ours():
    assert {service["image"] for service in OURS.values()} == {"docker_kickstand"}
    assert set(SERVICES) - set(OURS) == {"prometheus"}


def test_the_cluster_is_apart_and_has_no_way_out():
    assert COMPOSE["networks"]["cluster"] == {"internal": True}
    for name, service in SERVICES.items():
        alone = ["cluster"] if service.get("profiles") == ["cluster"] else ["default"]
        assert service.get("network_mode") == "none" or service["networks"] == alone, name


def test_only_the_service_that_makes_the_token_can_write_it():
    mounts = {name: [mount for mount in service.get("volumes", ()) if mount.startswith("token:")]
              for name, service in SERVICES.items()}  # fmt: skip
    assert mounts.pop("token") == ["token:/run/kickstand"]
    assert {name for name, found in mounts.items() if found} == {"kickstand", "vmm", "kicker", "prometheus"}
    assert all(mount.endswith(":ro") for found in mounts.values() for mount in found)


def test_files_that_are_mounted_or_run_exist():
    text = (DOCKER / "compose.yaml").read_text()
    assert {path for path in re.findall(r"/opt/demo/(\w+\.py)", text) if not (DOCKER / path).is_file()} == set()
    assert all((DOCKER / path).is_file() for path in re.findall(r'"\./([\w.]+):', text))


def test_prometheus_scrapes_the_server_with_the_token():
    [job] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["kickstand:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/kickstand/token"


def test_the_image_is_built_in_stages_from_the_base_that_is_named():
    assert INSTRUCTIONS[0] == "ARG BASE_IMAGE=python:3.12-slim"
    assert [line for line in INSTRUCTIONS if line.startswith("FROM")] == ["FROM ${BASE_IMAGE} AS build", "FROM scratch"]


def test_every_package_of_the_image_comes_from_a_lock_with_hashes():
    installs = re.findall(r"pip install ([^&\n]*)", "\n".join(INSTRUCTIONS))
    assert len(installs) == 2
    assert "--require-hashes --requirement requirements-cluster.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


def test_the_image_runs_as_a_user_without_a_shell_between():
    final = INSTRUCTIONS[INSTRUCTIONS.index("FROM scratch") :]
    assert "USER 10001:10001" in final
    assert any(re.match(r'CMD \["kickstand", "serve", ', line) for line in final)
    assert any(re.match(r'HEALTHCHECK .*CMD \["python", ', line) for line in final)


def test_nothing_but_what_the_image_is_made_of_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    sources = {source for line in INSTRUCTIONS if line.startswith("COPY") and "--from" not in line
               for source in line.split()[1:-1]}  # fmt: skip
    assert sources == {line[1:] for line in ignored if line.startswith("!")}


def test_the_token_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "token"
    made = [run_python(DOCKER / "make_token.py", path).stdout and path.read_text() for _ in range(2)]
    assert made[0] == made[1]
    assert len(made[0]) >= 43
    assert path.stat().st_mode & 0o777 == 0o600


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60)


@pytest.mark.slow
def test_the_clients_run_guests_and_merge_under_them(tmp_path):
    """Both clients of the demo against a live server that wants a token, until each has said what it saw."""
    from kickstand.client import Client

    token = tmp_path / "token"
    run_python(DOCKER / "make_token.py", token)
    with server("--default-vm", "--vcpus", "2", "--token-file", str(token)) as url:
        env = {"KICKSTAND_URL": url, "KICKSTAND_TOKEN_FILE": str(token), "PYTHONPATH": str(ROOT)}
        clients = [subprocess.Popen([sys.executable, DOCKER / name], env=env) for name in ("vmm.py", "kicker.py")]
        try:
            with Client(url, token=token.read_text()) as client:
                while client.state()["vcpus"][0]["counters"]["eintr"] < 3:  # kicked out of KVM_RUN three times
                    assert all(process.poll() is None for process in clients)
                state = client.state()
        finally:
            for process in clients:
                process.terminate()
        assert [process.wait(10) for process in clients] == [0, 0]  # SIGTERM is a way to end, not a failure
    assert [vcpu["counters"]["mmio"] for vcpu in state["vcpus"]] == [0, 0]
    assert all(vcpu["counters"]["exits"] for vcpu in state["vcpus"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_story_with_curl_alone_ends_as_it_should():
    with server() as url:
        command = ["env", "ROUNDS=3", "sh", DOCKER / "demo.sh", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    told = re.findall(r"(?:without|inside) a kick: +(\d+)", done.stdout)
    assert int(told[0]) > 0
    assert int(told[1]) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_story_with_curl_alone_says_what_is_wrong():
    done = subprocess.run(
        ["sh", DOCKER / "demo.sh", "http://127.0.0.1:9"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "127.0.0.1" in done.stderr
