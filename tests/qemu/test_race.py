"""``kickstand demo --client qemu``: the race of the mail in QEMU itself, and both cures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from kickstand.commands.demo.qemu.race import CRASHED, SURVIVED, Row, expected
from kickstand.commands.demo.qemu.sector import SECTOR, SOURCE, boot_sector
from kickstand.commands.demo.qemu.story import HEAD, WIDTH, lines

DUMP = ["KVM internal error. Suberror: 1", "EIP=00000005 EFL=00000002", "CS =0800 00008000 0000ffff 00009b00"]


def test_the_listing_is_what_the_source_assembles_to(tmp_path):
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("no binutils (as, ld)")
    assembled, linked = tmp_path / "sector.o", tmp_path / "sector"
    subprocess.run(["as", "--32", SOURCE, "-o", assembled], check=True)
    command = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", assembled, "-o", linked]
    subprocess.run(command, check=True)
    assert linked.read_bytes() == boot_sector(400)


def test_a_sector_asks_for_as_many_transactions_as_one_wants():
    seven, other = boot_sector(7), boot_sector(0x12345)
    assert len(seven) == len(other) == SECTOR
    assert [at for at in range(SECTOR) if seven[at] != other[at]] == [506, 507, 508]


def test_a_qemu_that_keeps_its_vcpus_out_itself_is_expected_to_survive():
    assert expected("none", "7.2.22") == CRASHED
    assert expected("none", "10.0.2") == expected("hold", "7.2.22") == SURVIVED


def test_what_is_told_fits_and_says_where_it_crashed():
    crashed = Row("x86", "none", 400, CRASHED, CRASHED, 10, DUMP)
    protection = {"drain_ns_median": 217_000, "drain_ns_max": 99_358_000, "kicked_out": 402, "eintr_while_closed": 323}
    kicked = Row("x86", "kick", 99_999, SURVIVED, SURVIVED, 99_999, [], protection)
    told = [HEAD, *lines(crashed), *lines(kicked)]
    assert told[1].split()[2:5] == ["10,", "crashed", "0800:0005"]
    assert told[2].split()[2:] == ["99999,", "survived", "-", "217", "99358", "402", "323"]
    assert max(map(len, told)) <= WIDTH


def test_without_qemu_the_demo_says_in_one_line_what_is_missing():
    command = [sys.executable, "-m", "kickstand", "demo", "--client", "qemu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": "/nowhere"})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "qemu-system-x86" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_unprotected_qemu_crashes_and_both_protections_cure_it(qemu):
    command = [sys.executable, "-m", "kickstand", "demo", "--client", "qemu", "--rounds", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    unprotected, hold, kick = json.loads(done.stdout)["rows"]
    assert unprotected["outcome"] == CRASHED, unprotected
    assert unprotected["where"].startswith("0800:")  # the second CPU, in the memory that was taken away
    assert unprotected["transactions"] < 100
    for row in (hold, kick):
        assert (row["outcome"], row["transactions"]) == (SURVIVED, 100), row
    assert kick["kicked_out"] > 50  # it was inside, and had to leave
    assert 0 < kick["drain_ns_median"] < 50_000_000
    assert done.returncode == 0
