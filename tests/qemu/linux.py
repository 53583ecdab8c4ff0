"""Debian's kernel under QEMU on Kickstand's /dev/kvm, to its first userspace line: ``make linux-test``.

The kernel is that of ``linux-image-cloud-amd64``, as it is installed everywhere; the initramfs is made here. Nothing of
the machine is switched off: real clock, ACPI, APIC. On its way there a client kicks and resumes it a hundred times.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.qemu.boot import boot, free_port
from tests.qemu.kicks import Kicks, entries
from tests.qemu.packages import depends_on, unpacked

LINE = "This is userspace."
COMMAND_LINE = "console=ttyS0 panic=-1"
DIRECTORY, DEVICE, PROGRAM = 0o40755, 0o20600, 0o100755
CONSOLE = 5, 1
TROUBLE = r".*(?:lockup|LOCKUP|rcu.*stall|starved|BUG|WARNING|Oops|Call Trace|blocked for more than)[\s\S]{,2000}"
KICKS = 100
TIMEOUT_S = 600


@pytest.fixture(scope="session")
def kernel() -> Path:
    """The kernel's image."""
    package = depends_on("linux-image-cloud-amd64", r"linux-image-\S+-cloud-amd64")
    (image,) = (unpacked(package) / "boot").glob("vmlinuz-*")
    return image


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory) -> Path:
    """An archive with a console and one program."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("no binutils (as, ld)")
    folder = tmp_path_factory.mktemp("initramfs")
    assembled, program, archive = folder / "init.o", folder / "init", folder / "init.cpio"
    subprocess.run(["as", Path(__file__).with_name("init.S"), "-o", assembled], check=True)
    subprocess.run(["ld", "-s", assembled, "-o", program], check=True)
    files = [
        ("dev", DIRECTORY, b"", (0, 0)),
        ("dev/console", DEVICE, b"", CONSOLE),
        ("init", PROGRAM, program.read_bytes(), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    archive.write_bytes(b"".join(entry(number, *file) for number, file in enumerate(files)))
    return archive


def entry(number, name, mode, data, device):
    """One file of a cpio archive in the "newc" form."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head.ljust(-(-len(head) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")


def test_an_archive_has_its_names_and_data_at_multiples_of_four():
    made = entry(1, "init", PROGRAM, b"12345", (0, 0))
    assert len(made) % 4 == 0
    assert struct.unpack_from("6s8s8s", made) == (b"070701", b"00000001", b"000081ed")
    assert made[110:114] == b"init"


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("mode", ["precise", "fast"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_it_comes_to_userspace(qemu, kernel, initramfs, cpus, mode):
    boot_linux(kernel, initramfs, cpus, "--mode", mode)


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_client_kicks_and_resumes_it_a_hundred_times_on_its_way_there(qemu, kernel, initramfs, tmp_path, cpus):
    port, summary = free_port(), tmp_path / "summary.json"
    under = ("--variant", "sticky", "--serve", f"127.0.0.1:{port}", "--summary-json", str(summary))
    with Kicks(port, KICKS) as kicks:
        boot_linux(kernel, initramfs, cpus, *under)
    assert len(kicks.windows) == KICKS
    for window in kicks.windows:
        assert window.kick["changed"], str(window)
        assert entries(window.closed) == entries(window.still_closed), str(window)
        assert all("KVM_REQ_USERSPACE_KICK" in vcpu["requests"] for vcpu in window.still_closed), str(window)
        assert window.resume["cleared"] == cpus, str(window)
    for window, later in pairwise(kicks.windows):
        assert sum(entries(later.closed)) > sum(entries(window.still_closed)), f"{window}\n{later}"
    exits = sum(json.loads(summary.read_text())["exits"].values())
    assert exits > 1000 + sum(vcpu["counters"]["runs"] for vcpu in kicks.windows[-1].still_closed)


def boot_linux(kernel, initramfs, cpus, *under):
    """To its first userspace line, and without a line of trouble."""
    machine = ("-smp", str(cpus), "-m", "128", "-nodefaults", "-serial", "stdio")
    linux = ("-kernel", str(kernel), "-initrd", str(initramfs), "-append", COMMAND_LINE)
    done = boot(*machine, *linux, until=LINE, timeout=TIMEOUT_S, under=under)
    assert done.reached, str(done)
    assert not re.search(TROUBLE, done.out), re.search(TROUBLE, done.out)[0]
