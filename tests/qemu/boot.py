"""One boot of QEMU under ``kickstand exec``, until what it writes shows how far it has come."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass

KILL_S = 10


@dataclass(frozen=True)
class Boot:
    """How it went: all that was written, whether it came so far, CPU seconds of QEMU and its KVM together."""

    out: str
    err: str
    reached: bool
    cpu_s: float

    def __str__(self):
        return f"{self.cpu_s:.1f} CPU s\n{self.out[-2000:]}\n{self.err[-2000:]}"


def boot(*options, until, timeout, under=(), then=lambda: None) -> Boot:
    """Run QEMU until it has written ``until`` to its standard output; ``then`` is called while it goes on."""
    qemu = ["qemu-system-x86_64", "-accel", "kvm", "-display", "none", "-monitor", "none", "-no-reboot", *options]
    command = [sys.executable, "-m", "kickstand", "exec", *under, "--", *qemu]
    before = _cpu_s()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    errors: list[str] = []
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    listener.start()
    late, too_late = threading.Timer(timeout, process.terminate), threading.Timer(timeout + KILL_S, process.kill)
    late.start()
    too_late.start()
    try:
        out, reached = _read(process.stdout, until)
        if reached:
            then()
        process.terminate()
        process.stdout.read()
        process.wait()
    finally:
        late.cancel()
        too_late.cancel()
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()
        process.stderr.close()
    return Boot(out, errors[0], reached, _cpu_s() - before)


def free_port() -> int:
    """A port for ``--serve``."""
    with closing(socket.socket()) as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def _read(stream, until) -> tuple[str, bool]:
    out = ""
    while piece := stream.read(1):  # a prompt ends no line
        out += piece
        if piece == until[-1] and out.endswith(until):
            return out, True
    return out, False


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
