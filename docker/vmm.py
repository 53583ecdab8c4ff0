"""A VMM over HTTP: it gives the guests memory and programs, and runs every vCPU.

Written to be copied: a VMM test in another language makes the same calls. It keeps nothing that the server does not
have, so both can be started again at any time.

    KICKSTAND_URL=http://127.0.0.1:8000 python docker/vmm.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import httpx

from kickstand.client import AsyncClient, Json, KickstandError, region

PAGE = 4096
RAM = range(16 * PAGE)
M1, M2 = 0x20_0000, 0x20_1000  # two slots, one page each; the kicker makes them one and two again
SERIAL = 0x3F8
DEVICE_S = 0.01  # how long our device takes for a byte
LOOK_S = 0.002
REPORT_S = 5.0
RETRY_S = 1.0


@dataclass(slots=True)
class Seen:
    """What KVM_RUN answered, counted."""

    exits: int = 0
    eintr: int = 0
    spurious: int = 0


def guest(vcpu: int) -> list[list[object]]:
    """The vCPU's program: read m2 many times, count, tell the device, and from the top again."""
    return [*([["read", M2, 4]] * 50), ["write", 8 * vcpu, 1, 4], ["out", SERIAL, ord(".")]]


async def prepare(kvm: AsyncClient) -> None:
    """Load the programs, then set the slots in one transaction: a VM that has slots is ready."""
    if (await kvm.regions())["regions"]:
        return  # it came back with the server
    for vcpu in (await kvm.state())["vcpus"]:
        await kvm.set_program(vcpu["id"], guest(vcpu["id"]))
    ram = (await kvm.allocate(len(RAM)))["userspace_addr"]
    pages = int((await kvm.allocate(2 * PAGE))["userspace_addr"], 16)
    slots = [region(0, 0, len(RAM), ram), region(1, M1, PAGE, pages), region(2, M2, PAGE, pages + PAGE)]
    await kvm.memory_transaction(slots, "none")


async def vcpu_thread(kvm: AsyncClient, vcpu: int, seen: Seen) -> None:
    """KVM_RUN, handle the exit, KVM_RUN again: the loop of every VMM."""
    reply = None
    while True:
        answer = await kvm.run(vcpu, reply=reply)
        reply = None
        if answer["errno"] == "EINTR":
            seen.eintr += 1
            await gate_open(kvm)
        elif answer["exit_reason"] == "KVM_EXIT_MMIO":
            reply = handle_mmio(vcpu, answer["mmio"], seen)
        else:
            seen.exits += 1
            await asyncio.sleep(DEVICE_S)


async def gate_open(kvm: AsyncClient) -> None:
    """Wait until nobody keeps the vCPUs out; a VMM that called KVM_RUN at once would spin."""
    while (await kvm.state())["kicked"]:
        await asyncio.sleep(LOOK_S)


def handle_mmio(vcpu: int, mmio: Json, seen: Seen) -> bytes | None:
    """No device is mapped anywhere, and every guest touches RAM only: this is the tear that a kick prevents."""
    seen.spurious += 1
    print(f"spurious exit: vcpu {vcpu} found no memory at {mmio['phys_addr']}, which is RAM", flush=True)
    return None if mmio["is_write"] else b"\xff" * mmio["len"]


async def report(seen: Seen) -> None:
    """Say what was seen, now and then."""
    while True:
        await asyncio.sleep(REPORT_S)
        print(f"{seen.exits} exits, {seen.eintr} EINTR, {seen.spurious} spurious exits", flush=True)


async def run_machine(kvm: AsyncClient, seen: Seen) -> None:
    """All of the VMM's threads, until one of them loses the server."""
    await prepare(kvm)
    async with asyncio.TaskGroup() as threads:
        threads.create_task(report(seen))
        for vcpu in (await kvm.state())["vcpus"]:
            threads.create_task(vcpu_thread(kvm, vcpu["id"], seen))


async def main(token: str | None) -> None:
    """Run the VM ``default`` until SIGTERM; a server that goes away is waited for."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    seen = Seen()
    async with AsyncClient(os.environ.get("KICKSTAND_URL", "http://127.0.0.1:8000"), token=token) as kvm:
        while True:
            try:
                await run_machine(kvm, seen)
            except* (httpx.TransportError, KickstandError) as lost:
                print(f"the server does not answer ({lost.exceptions[0]}); trying again", flush=True)
            await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    token_file = os.environ.get("KICKSTAND_TOKEN_FILE")
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(main(Path(token_file).read_text().strip() if token_file else None))
