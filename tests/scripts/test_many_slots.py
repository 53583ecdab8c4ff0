"""As many slots as there can be: all are made, a guest uses the first and the last, and all of them go again.

Under exec the kernel's own set_memory_region_test does it (``make selftests``).
"""

import pytest

from kickstand.core.uapi import NR_MEMSLOTS
from kickstand.runtime.registry import Registry
from kickstand.scripts.differential.story import op
from kickstand.scripts.language.parse import parse_operations
from kickstand.scripts.play.player import Player
from tests.api.live import live
from tests.long import either

SLOTS = either(256, NR_MEMSLOTS)
PAGE, CODE, FAR = 4096, 0x1000, 1 << 20
LOW = 4 * PAGE  # the slot with the guest
LAST = FAR + 2 * PAGE * (SLOTS - 1)  # slots with a hole behind each, so that none of them is its neighbour
A_SCRIPT = 8_192
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def region(slot):
    gpa, offset = (0, 0) if slot == 0 else (FAR + 2 * PAGE * slot, LOW + PAGE * (slot % 8))
    size = LOW if slot == 0 else PAGE
    return op("set_memory_region", slot=slot, flags=0, gpa=gpa, size=size, host={"arena": "A", "offset": offset})


def gone(slot):
    return op("set_memory_region", slot=slot, flags=0, gpa=0, size=0, host={"abs": 0})


# mov eax, [FAR]; mov [LAST], eax; hlt
STORES = "a1" + (FAR + 2 * PAGE).to_bytes(4, "little").hex() + "a3" + LAST.to_bytes(4, "little").hex() + "f4"
BEGIN = [
    op("arena", name="A", size=LOW + 8 * PAGE),
    op("write_host", arena="A", offset=CODE, hex=STORES),
    op("write_host", arena="A", offset=LOW + PAGE, hex="78563412"),
    op("create_vcpu", id=0),
    op("set_sregs", vcpu=0, preset="prot32"),
]
RUN = [op("set_regs", vcpu=0, regs={"rip": CODE, "rflags": 2}), op("run", vcpu=0)]
LOOK = op("read_host", arena="A", offset=LOW + PAGE * ((SLOTS - 1) % 8), length=4)


def parts():
    """The whole of it, in scripts that a server takes; what the guest does comes before the slots go."""
    made, going = [region(slot) for slot in range(SLOTS)], [gone(slot) for slot in range(SLOTS)]
    whole = [*BEGIN, *made, *RUN, LOOK, *going, region(1), *RUN]
    return [whole[at : at + A_SCRIPT] for at in range(0, len(whole), A_SCRIPT)]


def check(answers):
    *_, first, read = answers[: len(BEGIN) + SLOTS + 3]
    assert (first["ret"], first["exit_reason"], read["hex"]) == (0, "HLT", "78563412")
    assert all(answer["ret"] == 0 for answer in answers)
    assert answers[-1]["exit_reason"] == "INTERNAL_ERROR"  # without the slot that had its code


async def test_all_slots_by_a_script():
    registry = Registry()
    player = Player(await registry.create("vm", engine="x86"))
    check([await player.play(operation) for part in parts() for operation in parse_operations(part)])
    await registry.destroy("vm")


async def test_all_slots_over_http():
    async with live() as server, server.client() as client:
        assert (await client.post("/vms", json={"id": "vm", "engine": "x86"})).status_code == 201
        answers = []
        for part in parts():
            done = await client.post("/vms/vm/script", json=part, timeout=300)
            assert done.status_code == 200, done.text[:300]
            answers += done.json()["results"]
        check(answers)
