"""A client that kicks and resumes the machine that QEMU runs, again and again, while it runs."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

import httpx

PAUSE_S = 0.2  # the guest's, between two windows
RETRIES = 6  # until the server listens


@dataclass(frozen=True)
class Window:
    """From KICK to RESUME: their answers, and the vCPUs when the one had returned and before the other was called."""

    kick: dict
    closed: list[dict]
    still_closed: list[dict]
    resume: dict

    def __str__(self):
        return "\n".join(map(str, (self.kick, *self.closed, *self.still_closed, self.resume)))


class Kicks:
    """A ``with`` block beside which a machine at a port is kicked and resumed, so many times at most."""

    def __init__(self, port, number):
        self._url, self._number = f"http://127.0.0.1:{port}", number
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.windows: list[Window] = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        waiting = httpx.HTTPTransport(retries=RETRIES)
        with (
            httpx.Client(base_url=self._url, transport=waiting, timeout=60) as client,
            contextlib.suppress(httpx.HTTPError),  # QEMU has ended, and its server
        ):
            while not self._over.wait(PAUSE_S) and len(self.windows) < self._number:
                for vm in client.get("/vms").json()["vms"]:
                    if vm["vcpus"] and vm["vcpus"][0]["counters"]["exits"]:
                        self.windows.append(_window(client, f"/vms/{vm['id']}"))


def _window(client, vm) -> Window:
    kick = client.post(f"{vm}/kick").raise_for_status()
    closed, still_closed = (client.get(f"{vm}/vcpu").raise_for_status().json()["vcpus"] for _ in range(2))
    resume = client.post(f"{vm}/resume").raise_for_status()
    return Window(kick.json(), closed, still_closed, resume.json())


def entries(vcpus) -> list[int]:
    """How often each vCPU has entered the guest."""
    return [vcpu["counters"]["entries"] for vcpu in vcpus]
