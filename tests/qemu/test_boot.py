"""QEMU boots on Kickstand's /dev/kvm, and clients see it. ``make qemu-test`` does it with all its machines."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.qemu.boot import boot, free_port

CONSOLE = ("-chardev", "stdio,id=console", "-device", "isa-debugcon,iobase=0x402,chardev=console")
PC = ("-machine", "pc,kernel-irqchip=off", "-vga", "none", "-net", "none", "-serial", "none", "-m", "64")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_seabios_looks_for_something_to_boot_and_clients_see_its_transactions(qemu):
    port, seen = free_port(), {}

    def look():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            (seen["vm"],) = client.get("/vms").json()["vms"]
            names = {"format": "events", "names": "mem_transaction,kvm_memslot"}
            answer = client.get(f"/vms/{seen['vm']['id']}/trace", params=names)
            seen["events"] = [json.loads(line) for line in answer.text.splitlines()]

    under = ("--serve", f"127.0.0.1:{port}")
    done = boot(*PC, *CONSOLE, until="No bootable device.", timeout=300, under=under, then=look)
    assert done.reached, str(done)
    assert [vcpu["id"] for vcpu in seen["vm"]["vcpus"]] == [0]
    assert len(seen["vm"]["memory_regions"]) > 3
    made, *booted = transactions(seen["events"])
    assert made == "DCCCC"  # by QEMU, before its first KVM_RUN
    assert booted == ["DDDDCCCC", "DDDDC", "DCCCCC", "DDCC"]


def transactions(events):
    """What each transaction does: deletes before it creates."""
    found, inside = [], False
    for event in events:
        if event["event"] == "mem_transaction":
            inside = event["data"]["phase"] == "begin"
            found += [""] * inside
        elif inside:
            found[-1] += event["data"]["change"][0].upper()
    return found
