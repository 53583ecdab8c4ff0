"""A guest of sixteen CPUs, driven by one script over HTTP: the results are those of ``exec`` and of the real kernel."""

import struct

import pytest

from tests.api.live import live
from tests.guests import smp_guest

CPUS, ROUNDS = 16, 3
CS = {"base": smp_guest.CODE, "selector": smp_guest.CODE >> 4}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def op(name, /, **args):
    return {"op": name, "args": args}


def script():
    """What a VMM does: memory, the boot CPU at its start, threads for the others, KVM_RUN until the guest is done."""
    return [
        op("arena", name="ram", size=smp_guest.SIZE),
        op("write_host", arena="ram", offset=0, hex=smp_guest.image(CPUS, ROUNDS).hex()),
        op("set_memory_region", slot=0, flags=0, gpa=0, size=smp_guest.SIZE, host={"arena": "ram", "offset": 0}),
        *[op("create_vcpu", id=vcpu) for vcpu in range(CPUS)],
        op("set_sregs", vcpu=0, preset=None, changes={"cs": CS}),
        op("set_regs", vcpu=0, regs={"rip": 0, "rflags": 2}),
        *[op("start_thread", vcpu=vcpu) for vcpu in range(1, CPUS)],
        op("run", vcpu=0),
        op("read_host", arena="ram", offset=smp_guest.RECEIVED, length=4 * CPUS),
        op("read_host", arena="ram", offset=smp_guest.ALIVE, length=8),
        *[op("stop_thread", vcpu=vcpu) for vcpu in range(1, CPUS)],
    ]


@pytest.mark.parametrize("engine", ["x86", "kvm"])
async def test_sixteen_cpus_start_and_wake_each_other_as_one_script_drives_them(engine):
    async with live(default_vm=False, ephemeral=True) as server, server.client() as client:
        made = await client.post("/vms", json={"id": "smp", "engine": engine, "irqchip": True}, timeout=250)
        if engine == "kvm" and made.status_code == 501:
            pytest.skip(f"no /dev/kvm to compare with: {made.json()['detail']}")
        assert made.status_code == 201, made.text
        answer = await client.post("/vms/smp/script", json=script(), timeout=250)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [one["ret"] for one in results] == [0] * len(results), results
        done, received, alive = results[-CPUS - 2 : -CPUS + 1]
        assert (done["exit_reason"], done["port"]) == ("IO", smp_guest.DONE_PORT)
        assert struct.unpack(f"<{CPUS}I", bytes.fromhex(received["hex"])) == (ROUNDS,) * CPUS
        assert struct.unpack("<II", bytes.fromhex(alive["hex"])) == (CPUS, ROUNDS)
