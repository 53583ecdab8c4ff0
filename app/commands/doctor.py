"""``kickstand doctor``: what works on this machine, what does not, and what to do about it.

Each check tries the thing itself rather than asking for a version. What only one engine or command needs is a note.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kickstand.exec.checks import Check
from kickstand.exec.checks import checks as exec_checks
from kickstand.exec.host.launch import unusable as cannot_exec
from kickstand.guests.kvm.device import unusable as no_device
from kickstand.journal.disk.directory import default_directory
from kickstand.journal.examine import MIB, Finding, examine, free_of
from kickstand.settings import HIGHEST_PORT, JournalSettings, SettingsError

OLDEST = (3, 11)
FILES = 1_024  # every parked run and every stream is one
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
BROWSERS = ("xdg-open", "open", "firefox", "chromium", "chromium-browser", "google-chrome", "microsoft-edge", "safari")
EXEC_S = 30
CODE, ANSWER = bytes.fromhex("b82a000000f4"), 42  # mov eax, 42; hlt


def check_machine(port: int = 8000, state: Path | None = None) -> list[Finding]:
    """Everything that Kickstand can use, in the order in which a newcomer needs it."""
    here = [_python(), _unicorn(), _port(port), _state(state or default_directory()), _files()]
    return [*here, _exec(), *_of_exec(), _kvm(), _browser()]


def _python() -> Finding:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    if sys.version_info < OLDEST:
        return Finding("python", "damaged", found, "install Python 3.11 or later")
    return Finding("python", "ok", found)


def _unicorn() -> Finding:
    """Run two instructions."""
    try:
        worked = _run_a_guest()
    except Exception as error:  # noqa: BLE001  whatever its library raises, it does not work
        return Finding("unicorn", "damaged", str(error), "install it again: pip install --force-reinstall unicorn")
    if not worked:
        return Finding("unicorn", "damaged", "it computes wrongly", "install a wheel of this platform")
    return Finding("unicorn", "ok", f"{version('unicorn')}: runs x86 guests")


def _run_a_guest() -> bool:
    unicorn: Any = import_module("unicorn")  # that it cannot be loaded is what we want to know
    emulator = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    emulator.mem_map(0x1000, 0x1000)
    emulator.mem_write(0x1000, CODE)
    emulator.emu_start(0x1000, 0x1000 + len(CODE) - 1)
    return bool(emulator.reg_read(unicorn.x86_const.UC_X86_REG_RAX) == ANSWER)


def _port(port: int) -> Finding:
    if not 0 <= port <= HIGHEST_PORT:
        return Finding("port", "damaged", f"{port} is not between 0 and {HIGHEST_PORT}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            detail = f"127.0.0.1:{port} is taken" if taken else f"127.0.0.1:{port}: {error.strerror}"
            return Finding("port", "note", detail, "kickstand serve --port 0 takes a free one")
    return Finding("port", "ok", f"127.0.0.1:{port} is free")


def _state(path: Path) -> Finding:
    free = free_of(path)
    if free < JournalSettings().reserve:
        return Finding("state", "damaged", f"{path}: the disk is full", "make room, or serve --ephemeral")
    if not path.exists():
        return Finding("state", "ok", f"{path} will be made; {free // MIB} MiB are free there")
    try:
        found = examine(path)
    except (OSError, SettingsError) as error:
        return Finding("state", "damaged", f"{path}: {error}", "choose another one: serve --state DIR")
    vms = sum(each.name.startswith("vm ") for each in found)
    damaged = [each.name for each in found if each.state == "damaged"]
    if damaged:
        told = f"{path}: damaged: {', '.join(damaged)}"
        return Finding("state", "damaged", told, f"kickstand doctor --state {path} says more")
    if not os.access(path, os.W_OK):
        return Finding("state", "damaged", f"{path} cannot be written", "choose another one: serve --state DIR")
    serving = next((each.detail for each in found if each.name == "lock" and each.state == "note"), "")
    return Finding("state", "ok", f"{path}: {vms} VMs, {free // MIB} MiB free" + (serving and f"; {serving}"))


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        told = f"{hard} open files at most: as many parked runs and streams together"
        return Finding("open files", "note", told, "raise the limit: ulimit -n 65536")
    return Finding("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}")


def _exec() -> Finding:
    """Run a program that does nothing."""
    if why := cannot_exec():
        return Finding("exec", "note", why, "all but kickstand exec works; in a container: allow seccomp")
    program = shutil.which("true")
    if program is None:
        return Finding("exec", "note", "there is no program 'true' to try it with")
    command = [sys.executable, "-m", "kickstand", "exec", "--", program]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=EXEC_S, check=False)  # noqa: S603  ours
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("exec", "note", str(error), "all but kickstand exec works")
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        told = said[-1] if said else f"exit status {ended.returncode}"
        return Finding("exec", "note", told.removeprefix("kickstand: "), "all but kickstand exec works")
    return Finding("exec", "ok", "programs run under the seccomp filter")


def _of_exec() -> list[Finding]:
    """What ``kickstand exec`` makes use of where it is there."""
    return [
        Finding(check.name, "ok" if check.there else "note", check.meaning, _advice(check))
        for check in exec_checks()
        if not check.needed
    ]


def _advice(check: Check) -> str:
    """Newer kernels cannot be had for the asking; what Yama lets a supervisor do with its own children can."""
    if check.there or check.name != "ptrace":
        return ""
    scope = YAMA.read_text(encoding="ascii").strip() if YAMA.exists() else "absent"
    return f"{YAMA} is {scope}: sysctl kernel.yama.ptrace_scope=1; in a container: allow ptrace"


def _kvm() -> Finding:
    reason = no_device()
    if reason is None:
        return Finding("/dev/kvm", "ok", "usable: --engine kvm, and replay against the real one")
    code, told = reason
    advice = "only --engine kvm needs it"
    if code in {errno.EACCES, errno.EPERM}:
        advice += "; join its group: sudo usermod -aG kvm $USER, then log in again"
    elif code == errno.ENODEV:
        advice += "; load kvm_intel or kvm_amd, or allow nested virtualisation to this machine"
    return Finding("/dev/kvm", "note", told, advice)


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return Finding(
            "browser", "note", "none is found here", "open the dashboard's URL from another machine's, by SSH"
        )
    return Finding("browser", "ok", found)


def lines(findings: list[Finding]) -> Iterator[str]:
    """For people: a line each, and what to do below it."""
    width = max(len(finding.name) for finding in findings)
    signs = {"ok": "ok  ", "note": "note", "damaged": "BAD "}
    for finding in findings:
        yield f"{signs[finding.state]}  {finding.name:{width}}  {finding.detail}"
        if finding.advice:
            yield f"      {'':{width}}  -> {finding.advice}"
