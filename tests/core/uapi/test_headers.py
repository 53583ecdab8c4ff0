"""The userspace ABI against the headers of this machine, where they are installed."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kickstand.core import uapi
from kickstand.core.uapi import IOCTLS, Cap, Direction, ExitReason, MpState
from tests.core.uapi.test_layouts import ARM_OFFSETS, STRUCTS

HEADER = Path("/usr/include/linux/kvm.h")


needs_header = pytest.mark.skipif(not HEADER.exists(), reason="the kernel's userspace headers are not installed")


PROPOSED = {"KVM_KICK_ALL_RUNNING_VCPUS", "KVM_RESUME_ALL_KICKED_VCPUS"}


def defines(prefix):
    found = re.findall(rf"^#define {prefix}(\w+)\s+(\d+)\b", HEADER.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


@needs_header
@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("KVM_EXIT_", ExitReason),
        ("KVM_MP_STATE_", MpState),
        ("KVM_INTERNAL_ERROR_", uapi.InternalError),
        ("KVM_CAP_", Cap),
    ],
)
def test_names_have_the_headers_values(prefix, names):
    theirs = defines(prefix)
    known = {each.name: int(each) for each in names if each.name in theirs}
    assert known == {name: theirs[name] for name in known}
    assert len(known) > 3


@needs_header
def test_ioctls_have_the_headers_direction_number_and_payload():
    pattern = r"^#define (KVM_\w+)\s+_IO(W|R|WR)?\(KVMIO,\s*(0x[0-9a-f]+)(?:,[\s\\]*(?:struct )?(\w+))?"
    theirs = {name: rest for name, *rest in re.findall(pattern, HEADER.read_text(), re.MULTILINE)}
    letters = {Direction.NONE: "", Direction.WRITE: "W", Direction.READ: "R", Direction(3): "WR"}
    compared = 0
    for ioctl in IOCTLS:
        if ioctl.name in PROPOSED or ioctl.name not in theirs:
            continue
        direction, nr, payload = theirs[ioctl.name]
        assert (ioctl.name, letters[ioctl.direction], ioctl.nr) == (ioctl.name, direction, int(nr, 16))
        assert ioctl.payload is None or ioctl.payload.name == payload
        compared += 1
    assert compared > 40


@needs_header
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the layouts are those of x86-64")
def test_a_c_compiler_agrees_on_every_size_and_offset(tmp_path):
    known = [each for each in STRUCTS if f"struct {each.name} {{" in HEADER.read_text()]  # some are newer than it
    expected = {f"sizeof(struct {each.name})": each.size for each in known}
    for each in known:
        for name in each.names:
            if (each.name, name) not in {("kvm_run", "exit"), ("kvm_run", "sync_regs")}:  # unions without a name
                expected[f"offsetof(struct {each.name}, {name})"] = each.offset(name)
    for reason, arm in uapi.KVM_RUN_EXITS.items():
        expected |= {f"offsetof(struct kvm_run, {arm.name}.{n})": at for n, at in ARM_OFFSETS[reason].items()}
    checks = "".join(f'_Static_assert({c} == {value}, "{c}");\n' for c, value in expected.items())
    source = tmp_path / "layout.c"
    source.write_text(f"#include <stddef.h>\n#include <linux/kvm.h>\n{checks}")
    done = subprocess.run(["cc", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
