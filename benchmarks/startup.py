"""Start-up: the help against a bare interpreter, and a server that answers against FastAPI's hello world."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time

from harness import Ratio, at_most, compare, report

HELLO = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/healthz")
async def hello():
    return {"hello": "world"}
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""
ROUNDS = 7
CACHE = tempfile.TemporaryDirectory(prefix="pycache-")


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment() -> dict[str, str]:
    """With compiled modules kept, as where the package is installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": CACHE.name}


def run(*command: str) -> None:
    """To its end."""
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True, env=environment())


def children_ns() -> int:
    """CPU time of the children that have ended, in ns."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def until_it_answers(*command: str) -> None:
    """Start a server, get one answer of it, and end it at once."""
    port = free_port()
    arguments = [word.replace("PORT", str(port)) for word in command]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment())
    while not answers(port):
        time.sleep(0.005)
    process.kill()
    process.wait()


def answers(port: int) -> bool:
    """It serves."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return link.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def main() -> list[Ratio]:
    """Both rows, in CPU time of the child processes."""
    serve = ("-m", "kickstand", "serve", "--port", "PORT", "--ephemeral")
    return [
        compare(
            "kickstand --help",
            "python -c pass",
            lambda: run("-m", "kickstand", "--help"),
            lambda: run("-c", "pass"),
            goal=at_most(3),
            clock=children_ns,
            rounds=ROUNDS,
        ),
        compare(
            "server ready: its first answer",
            "FastAPI + uvicorn hello world",
            lambda: until_it_answers(*serve),
            lambda: until_it_answers("-c", HELLO, "PORT"),
            goal=at_most(1.3),
            clock=children_ns,
            rounds=ROUNDS,
        ),
    ]


if __name__ == "__main__":
    report(main())
