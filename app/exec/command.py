"""``kickstand exec``: start the program, answer it, end as it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kickstand.core.errors import KvmError
from kickstand.exec.arguments import FAILED, split
from kickstand.exec.host import linux
from kickstand.exec.host.launch import Child, LaunchError, prepare
from kickstand.exec.host.notify import Listener
from kickstand.exec.options import VARIANTS, Options
from kickstand.exec.summary import Summary
from kickstand.exec.supervisor import Kvm, Supervisor

if TYPE_CHECKING:
    from kickstand.runtime.registry import Registry

_FORWARDED = (signal.SIGTERM, signal.SIGHUP)


class Host(Protocol):
    """Where the program's VMs live."""

    @property
    def registry(self) -> Registry:
        """The machines."""
        ...

    async def begin(self) -> None:
        """Be there for clients; returns when they can connect."""
        ...

    async def end(self) -> None:
        """Let them go."""
        ...


class Alone:
    """No clients but the program."""

    def __init__(self) -> None:
        self._registry: Registry | None = None

    @property
    def registry(self) -> Registry:
        """The machines; they are many, and the program's own limits hold."""
        if self._registry is None:
            from kickstand.runtime.registry import Registry  # noqa: PLC0415
            from kickstand.settings import Limits  # noqa: PLC0415

            self._registry = Registry(Limits(vms=1 << 20))
        return self._registry

    async def begin(self) -> None:
        """Nobody else comes."""

    async def end(self) -> None:
        """Nobody else came."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the program ended: its wait status, and what it did."""

    status: int
    summary: Summary


def main(arguments: Sequence[str], serve: Callable[[str], Host] | None = None) -> int:
    """``kickstand exec``; returns the exit status. ``serve`` makes the host that listens at an address."""
    given, command = split(arguments)
    variant = given.variant or VARIANTS[given.protect]
    mode = "precise" if given.mode == "auto" else given.mode
    options = Options(variant, mode, given.protect, given.memory == "share", given.trace)
    try:
        child = prepare(command)
        try:
            _check(given.variant_module, variant, given.trace, given.summary_json)
            _raise_file_limit()
            host = Alone() if given.serve is None or serve is None else serve(given.serve)
            ending = run(child, options, host)
        except BaseException:
            child.give_up()
            raise
        if given.summary_json:
            _write_summary(given.summary_json, ending.summary)
    except (LaunchError, KvmError, OSError, ValueError) as error:
        sys.stderr.write(f"kickstand exec: {error}\n")
        return FAILED
    if given.summary:
        sys.stderr.write("\n".join(["kickstand exec:", *ending.summary.lines(), ""]))
    return end_as(ending.status)


def _write_summary(path: Path, summary: Summary) -> None:
    import json  # noqa: PLC0415  takes longer to load than many a program runs

    path.write_text(json.dumps(summary.as_json()) + "\n")


def _check(module: Path | None, variant: str, *written: Path | None) -> None:
    """Find out now what would go wrong later. ``KvmError``, ``ValueError``, ``OSError``."""
    if module is not None or variant not in VARIANTS.values():
        from kickstand.core.variants import load_variant_module  # noqa: PLC0415
        from kickstand.core.variants import variant as find_variant  # noqa: PLC0415

        if module is not None:
            load_variant_module(module)
        find_variant(variant)
    for path in written:
        if path is not None:
            path.open("ab").close()


def run(child: Child, options: Options, host: Host) -> Ending:
    """Run a program to its end. ``LaunchError``: it was not started, and why."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    return asyncio.run(_supervise(child, options, host))


async def _supervise(child: Child, options: Options, host: Host) -> Ending:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal sends it to the program too
    for number in _FORWARDED:
        loop.add_signal_handler(number, _forward, child.pid, number)
    await host.begin()
    summary = Summary()

    def make_kvm(listener: Listener) -> Kvm:
        from kickstand.exec.device import kvm  # noqa: PLC0415  takes longer to load than many a program runs

        return kvm.Kvm(listener, host.registry, options, summary)

    supervisor = Supervisor(child.start(), make_kvm)
    supervisor.begin()
    try:
        status = await _wait(child.pid)
        if failure := child.failure():
            raise LaunchError(failure)
        await supervisor.rest()
    finally:
        await supervisor.close()
        await host.end()
    return Ending(status, summary)


async def _wait(pid: int) -> int:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, _settle, ended)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return os.waitpid(pid, 0)[1]  # noqa: ASYNC222  it has ended


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _forward(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _raise_file_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_as(status: int) -> int:
    """End this process as the program ended: by the same signal, or with the exit status that is returned."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)
