"""QEMU's machines on Kickstand's /dev/kvm, to the end of their firmware: ``make qemu-test``.

SeaBIOS on every machine, with every kind of interrupt controller and up to four CPUs; U-Boot; UEFI; QEMU's own
defaults; memtest86+ with two CPUs.
Not part of the suite, which boots one of them (``test_boot.py``).
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.qemu.boot import boot
from tests.qemu.packages import unpacked

TIMEOUT_S = 240
NOTHING_ELSE = ("-nodefaults", "-m", "64")
CONSOLE = ("-chardev", "stdio,id=console", "-device", "isa-debugcon,iobase=0x402,chardev=console")
END = "No bootable device."
MICROVM_BIOS = Path("/usr/share/seabios/bios-microvm.bin")
IRQCHIPS = ("off", "split", "on")
# A vCPU that is not the first never starts in 7.2.22 with all of the interrupt controllers in QEMU, on any KVM.
MANY = [(machine, irqchip, cpus) for machine in ("pc", "q35") for irqchip in IRQCHIPS[1:] for cpus in (2, 4)]
ONE = [(machine, irqchip, 1) for machine in ("pc", "q35", "isapc") for irqchip in IRQCHIPS]


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize(("machine", "irqchip", "cpus"), ONE + MANY)
def test_seabios_looks_for_something_to_boot(qemu, machine, irqchip, cpus):
    options = ("-machine", f"{machine},kernel-irqchip={irqchip}", "-smp", str(cpus))
    done = boot(*options, *NOTHING_ELSE, *CONSOLE, until=END, timeout=TIMEOUT_S)
    assert done.reached, str(done)
    assert f"Found {cpus} cpu(s)" in done.out or machine == "isapc"


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_seabios_of_a_microvm_looks_for_something_to_boot(qemu, irqchip):
    if not MICROVM_BIOS.exists():
        pytest.skip(f"no {MICROVM_BIOS} (Debian: seabios)")
    machine = ("-machine", f"microvm,graphics=off,kernel-irqchip={irqchip}", "-bios", str(MICROVM_BIOS))
    done = boot(*machine, *NOTHING_ELSE, "-serial", "stdio", until=END, timeout=TIMEOUT_S)
    assert done.reached, str(done)


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("cpu", [(), ("-cpu", "host"), ("-cpu", "max")], ids=["default", "host", "max"])
def test_a_machine_with_all_that_qemu_gives_it_looks_for_something_to_boot(qemu, cpu):
    """A VGA, a network card with its ROM, a serial line, a CD drive."""
    done = boot(*cpu, *CONSOLE, until=END, timeout=TIMEOUT_S)
    assert done.reached, str(done)
    assert "set VGA mode 3" in done.out


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("backend", ["memory-backend-memfd,share=on", "memory-backend-ram,share=on"])
def test_memory_of_another_kind_is_memory(qemu, backend):
    ram = ("-object", f"{backend},id=ram,size=64M", "-machine", "pc,memory-backend=ram")
    done = boot(*ram, *NOTHING_ELSE, *CONSOLE, until=END, timeout=TIMEOUT_S)
    assert done.reached, str(done)


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("bits", ["qemu-x86", "qemu-x86_64"])
def test_uboot_comes_to_its_prompt(qemu, bits):
    rom = unpacked("u-boot-qemu") / "usr/lib/u-boot" / bits / "u-boot.rom"
    options = ("-bios", str(rom), "-m", "256", "-nodefaults", "-serial", "stdio")
    done = boot(*options, until="\n=> ", timeout=TIMEOUT_S)
    assert done.reached, str(done)
    assert "U-Boot 20" in done.out


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_memtest86_tests_memory_with_both_cpus_and_finds_no_error(qemu, mode):
    image = unpacked("memtest86+") / "boot" / "memtest86+x64.bin"
    options = ("-smp", "2", *NOTHING_ELSE, "-serial", "stdio", "-kernel", str(image), "-append", "console=ttyS0,115200")
    done = boot(*options, until="Using: All Cores", timeout=TIMEOUT_S, under=("--mode", mode))
    assert done.reached, str(done)
    assert "CPU: 2 Cores 2 Threads" in done.out
    assert set(re.findall(r"Errors: (\d+)", done.out)) == {"0"}


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("cpus", [1, 2])
def test_uefi_comes_to_its_shell(qemu, tmp_path, cpus):
    """EDK II, which wakes its CPUs and goes to 64-bit mode by itself; in mode fast: it copies and hashes megabytes."""
    images = unpacked("ovmf") / "usr/share/OVMF"
    code, variables = images / "OVMF_CODE_4M.fd", tmp_path / "variables.fd"
    shutil.copyfile(images / "OVMF_VARS_4M.fd", variables)
    flash = (f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,file={variables}")
    options = ("-machine", "q35", "-smp", str(cpus), "-nodefaults", "-m", "256", "-serial", "stdio")
    drives = [option for drive in flash for option in ("-drive", drive)]
    done = boot(*options, *drives, until="Shell> ", timeout=TIMEOUT_S, under=("--mode", "fast"))
    assert done.reached, str(done)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_trace_of_a_boot_replays_to_the_same_answers_until_a_signal_ends_a_run(qemu, tmp_path):
    """It leaves the guest between two instructions that nobody has counted: from there on all may go another way.

    Of a boot that no signal meets the whole is replayed.
    """
    trace = tmp_path / "boot.jsonl.gz"
    under = ("--trace", str(trace))
    done = boot("-machine", "isapc,kernel-irqchip=off", *NOTHING_ELSE, *CONSOLE, until=END, timeout=120, under=under)
    assert done.reached, str(done)
    (line,) = gzip.decompress(trace.read_bytes()).splitlines()
    script = json.loads(line)
    signalled = (at for at, each in enumerate(script["ops"]) if "kick_after_ms" in each["args"])
    script["ops"] = script["ops"][: next(signalled, None)]
    assert sum(each["op"] == "run" for each in script["ops"]) > 10
    trace.write_bytes(gzip.compress(json.dumps(script).encode()))
    played = subprocess.run(
        [sys.executable, "-m", "kickstand", "replay", str(trace)], capture_output=True, text=True, check=False
    )
    assert played.returncode == 0, played.stdout[-3000:] + played.stderr[-3000:]
