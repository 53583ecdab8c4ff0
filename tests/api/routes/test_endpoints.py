"""What each path answers, and with which status."""

import asyncio

import pytest

from kickstand.core.trace import VcpuState
from tests.api.live import assert_problem, until

PAGE = 4096
VM_KEYS = {
    "id", "variant", "engine", "mode", "irqchip", "switches", "kicked", "holds", "vcpus", "memory_regions", "seq",
    "epoch",
}  # fmt: skip
VCPU_KEYS = {"id", "state", "mode", "mp_state", "requests", "exit_reason", "thread", "counters"}


# -- VMs -----------------------------------------------------------------------------------------------------


async def test_a_vm_is_created_described_listed_and_destroyed(client):
    body = {"id": "shop", "vcpus": 2, "variant": "holds", "programs": [[["hlt"]], [["spin"]]]}
    made = await client.post("/vms", json=body)
    assert made.status_code == 201
    assert made.headers["location"] == "/vms/shop"
    assert set(made.json()) == VM_KEYS
    assert set(made.json()["vcpus"][0]) == VCPU_KEYS
    assert "shop" in [vm["id"] for vm in (await client.get("/vms")).json()["vms"]]
    assert (await client.get("/vms/shop")).json()["variant"] == "holds"
    assert (await client.post("/vms/shop/vcpu/0/run")).json()["exit_reason"] == "KVM_EXIT_HLT"
    assert (await client.delete("/vms/shop")).status_code == 204
    assert_problem(await client.get("/vms/shop"), 404, "ENODEV")


async def test_programs_may_be_given_by_vcpu_id_and_no_body_makes_an_empty_vm(client):
    body = {"vcpus": 2, "programs": {"1": [["hlt"]]}}
    made = (await client.post("/vms", json=body)).json()
    assert (await client.post(f"/vms/{made['id']}/vcpu/1/run")).json()["exit_reason"] == "KVM_EXIT_HLT"
    empty = (await client.post("/vms")).json()
    assert (empty["vcpus"], empty["variant"], empty["engine"]) == ([], "sticky", "script")
    for vm in (made, empty):
        await client.delete(f"/vms/{vm['id']}")


@pytest.mark.parametrize(
    ("body", "status", "errno", "at"),
    [
        ({"id": "default"}, 409, "EEXIST", "/id"),
        ({"id": "no/slash"}, 422, "EINVAL", "/id"),
        ({"variant": "nobody"}, 422, "EINVAL", "/variant"),
        ({"engine": "nobody"}, 422, "EINVAL", "/engine"),
        ({"switches": {"x": 1}}, 422, "EINVAL", "/switches"),
        ({"vcpus": -1}, 422, "EINVAL", "/vcpus"),
        ({"vcpus": "many"}, 422, "EINVAL", "/vcpus"),
        ({"vcpus": 1, "programs": [[["fly"]]]}, 422, "EINVAL", "/0"),
    ],
)
async def test_a_vm_that_cannot_be_is_refused_by_the_field(client, body, status, errno, at):
    problem = assert_problem(await client.post("/vms", json=body), status, errno)
    assert problem["errors"][0]["pointer"] == at
    assert problem["ioctl"] in ("KVM_CREATE_VM", "program")


async def test_kick_and_resume_say_whether_they_changed_something(client, vm):
    first, second = [(await client.post(f"{vm}/kick")).json() for _ in range(2)]
    assert set(first) == {"kick_id", "changed", "vcpus_stopped", "holds", "drain_ns", "seq"}
    assert first["changed"]
    assert not second["changed"]
    assert (await client.get(vm)).json()["kicked"]
    assert (await client.get(f"{vm}/vcpu/0")).json()["requests"] == ["KVM_REQ_USERSPACE_KICK"]
    third, fourth = [(await client.post(f"{vm}/resume")).json() for _ in range(2)]
    assert set(third) == {"changed", "cleared", "holds", "seq"}
    assert third["changed"]
    assert not fourth["changed"]


async def test_the_default_vm_has_the_short_paths(client):
    assert (await client.get("/vm")).json()["id"] == "default"
    assert (await client.get("/vcpu")).json()["vcpus"] == (await client.get("/vms/default/vcpu")).json()["vcpus"]
    assert (await client.get("/vcpu/3")).json()["id"] == 3


# -- interrupts ----------------------------------------------------------------------------------------------


async def test_an_irqchip_wakes_a_halted_vcpu_by_line_and_by_msi(client, server):
    made = (await client.post("/vms", json={"irqchip": False})).json()
    vm, machine = f"/vms/{made['id']}", server.registry.get(made["id"])
    assert_problem(await client.post(f"{vm}/irq-line", json={"irq": 4, "level": 1}), 404, "ENXIO")
    assert_problem(await client.post(f"{vm}/msi", json={"address_lo": 0, "data": 40}), 422, "EINVAL")
    assert (await client.post(f"{vm}/irqchip")).json()["ret"] == 0
    assert_problem(await client.post(f"{vm}/irqchip"), 409, "EEXIST")
    await client.post(f"{vm}/vcpu", json={"id": 0, "program": [["hlt"], ["out", 1, 1]]})
    for wake in (
        lambda: client.post(f"{vm}/irq-line", json={"irq": 4, "level": 1}),
        lambda: client.post(f"{vm}/msi", json={"address": "0xfee00000", "data": 40}),
    ):
        parked = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
        await until(lambda: machine.vm.vcpus[0].watched.state is VcpuState.HALTED, "HLT")
        assert (await wake()).json()["ret"] in (0, 1)
        assert (await parked).json()["exit_reason"] == "KVM_EXIT_IO"
    assert (await client.post(f"{vm}/msi", json={"address": "0xfee09000", "data": 40})).json()["delivered"] is False
    assert_problem(await client.post(f"{vm}/vcpu/0/interrupt", json={"vector": 40}), 404, "ENXIO")
    await client.delete(vm)


# -- vCPUs ---------------------------------------------------------------------------------------------------


async def test_a_vcpu_is_created_once(client, vm):
    made = await client.post(f"{vm}/vcpu", json={"id": 5, "program": [["hlt"]]})
    assert made.status_code == 201
    assert made.headers["location"] == f"{vm}/vcpu/5"
    assert set(made.json()) == VCPU_KEYS
    assert_problem(await client.post(f"{vm}/vcpu", json={"id": 5}), 409, "EEXIST")
    for wrong in (-1, 4096, "five"):
        assert_problem(await client.post(f"{vm}/vcpu", json={"id": wrong}), 422, "EINVAL")


async def test_the_table_of_vcpus_is_paged_and_filtered(client, vm):
    for number in (9, 4, 7):
        await client.post(f"{vm}/vcpu", json={"id": number})
    first = (await client.get(f"{vm}/vcpu?limit=3")).json()
    assert ([vcpu["id"] for vcpu in first["vcpus"]], first["next"]) == ([0, 1, 4], 4)
    second = (await client.get(f"{vm}/vcpu?limit=3&after=4")).json()
    assert ([vcpu["id"] for vcpu in second["vcpus"]], second["next"]) == ([7, 9], None)
    assert (await client.get(f"{vm}/vcpu?state=halted")).json() == {"vcpus": [], "next": None}
    assert_problem(await client.get(f"{vm}/vcpu?state=asleep"), 422, "EINVAL")
    assert_problem(await client.get(f"{vm}/vcpu?limit=0"), 422, "EINVAL")


async def test_registers_go_out_as_hex_and_come_in_as_hex_or_number_and_overlay(client, vm):
    path = f"{vm}/vcpu/0/regs"
    answer = await client.put(path, json={"rax": "0xffffffffffffffff", "rbx": 7})
    assert answer.status_code == 200
    assert (answer.json()["rax"], answer.json()["rbx"]) == ("0xffffffffffffffff", "0x7")
    assert (await client.put(path, json={"rbx": 8})).json()["rax"] == "0xffffffffffffffff"
    assert len((await client.get(path)).json()) == 18
    for wrong in ({"eax": 1}, {"rax": 1 << 64}, {"rax": "all"}, {"rax": True}):
        problem = assert_problem(await client.put(path, json=wrong), 422, "EINVAL")
        assert problem["errors"][0]["pointer"] == f"/{next(iter(wrong))}"
        assert problem["ioctl"] == "KVM_SET_REGS"


async def test_special_registers_overlay_within_segments_too(client, vm):
    path = f"{vm}/vcpu/0/sregs"
    await client.put(path, json={"cs": {"base": "0x1000", "limit": 65535}, "cr0": 1})
    answer = (await client.put(path, json={"cs": {"selector": "0x8"}})).json()
    assert {"base": "0x1000", "limit": 65535, "selector": 8, "type": 0}.items() <= answer["cs"].items()
    assert answer["cr0"] == "0x1"
    problem = assert_problem(await client.put(path, json={"cs": {"colour": 1}}), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == "/cs/colour"


async def test_registers_are_read_during_a_run_and_written_after_it(client, machine, vm):
    parked = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
    await until(lambda: machine.vm.vcpus[0].watched.state is VcpuState.GUEST)
    assert (await client.get(f"{vm}/vcpu/0/regs")).status_code == 200
    writing = asyncio.create_task(client.put(f"{vm}/vcpu/0/regs", json={"rax": 1}))
    await until(lambda: machine._calls, "the write waits")
    assert not writing.done()
    await client.post(f"{vm}/vcpu/0/signal")
    assert (await writing).json()["rax"] == "0x1"
    assert (await parked).json()["cause"] == "signal"


async def test_mp_state_goes_by_name(client, vm):
    path = f"{vm}/vcpu/0/mp-state"
    assert (await client.get(path)).json() == {"mp_state": "RUNNABLE"}
    assert (await client.put(path, json={"mp_state": "RUNNABLE"})).json() == {"mp_state": "RUNNABLE"}
    assert (await client.put(path, json={"mp_state": 0})).json() == {"mp_state": "RUNNABLE"}
    for wrong in ("HALTED", "TIRED", 77, None):
        problem = assert_problem(await client.put(path, json={"mp_state": wrong}), 422, "EINVAL")
        assert problem["errors"][0]["pointer"] == "/mp_state"


async def test_interrupt_nmi_and_signal_answer_at_once_when_the_vcpu_is_at_rest(client, vm):
    for name, body in (("interrupt", {"vector": 32}), ("nmi", None), ("signal", None)):
        answer = await client.post(f"{vm}/vcpu/0/{name}", json=body)
        assert (answer.status_code, answer.json()["ret"]) == (200, 0), name
    assert (await client.post(f"{vm}/vcpu/0/run")).json()["cause"] == "signal"
    assert_problem(await client.post(f"{vm}/vcpu/0/interrupt", json={"vector": 256}), 422, "EINVAL")


async def test_a_program_is_checked_step_by_step(client, vm):
    problem = assert_problem(await client.put(f"{vm}/vcpu/0/program", json=[["hlt"], ["read"]]), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == "/1"
    for wrong in ([], {"steps": []}, "hlt"):
        assert_problem(await client.put(f"{vm}/vcpu/0/program", json=wrong), 422, "EINVAL")


async def test_a_server_side_thread_starts_once_and_stops(client, vm):
    started = await client.post(f"{vm}/vcpu/0/start", json={"behaviour": "careless", "handle_exits": False})
    assert started.json()["thread"]["behaviour"] == "careless"
    assert_problem(await client.post(f"{vm}/vcpu/0/start"), 409, "EBUSY")
    assert (await client.post(f"{vm}/vcpu/0/stop")).json()["thread"] is None
    assert (await client.post(f"{vm}/vcpu/0/stop")).status_code == 200
    assert (await client.post(f"{vm}/vcpu/0/start")).json()["thread"]["behaviour"] == "well"
    assert_problem(await client.post(f"{vm}/vcpu/0/start", json={"behaviour": "lazy"}), 422, "EINVAL")


@pytest.mark.slow
async def test_every_limit_of_vms_and_vcpus_is_told():
    from kickstand.settings import Limits
    from tests.api.live import live

    async with (
        live(limits=Limits(vms=1, vcpus_per_vm=2, memory_per_vm=PAGE), vcpus=2) as server,
        server.client() as client,
    ):
        assert_problem(await client.post("/vms"), 507, "ENOSPC")
        assert_problem(await client.post("/vcpu", json={"id": 2}), 422, "EINVAL")
        assert_problem(await client.post("/vm/host-memory", json={"size": 2 * PAGE}), 507, "ENOMEM")


# -- CPUID and MSRs ------------------------------------------------------------------------------------------


async def test_a_vcpu_has_the_cpuid_and_the_msrs_that_were_put_there(client):
    await client.post("/vms", json={"id": "model", "vcpus": 1, "engine": "x86"})
    supported = (await client.get("/kvm/cpuid")).json()["entries"]
    path = "/vms/model/vcpu/0"
    assert (await client.get(f"{path}/cpuid")).json()["entries"] == supported
    shorter = [entry for entry in supported if entry["function"] != "0x7"]
    assert (await client.put(f"{path}/cpuid", json={"entries": shorter})).json()["entries"] == shorter
    assert_problem(await client.put(f"{path}/sregs", json={"cr4": "0x100000"}), 422, "EINVAL")
    msrs = [{"index": "0xc0000081", "data": "0x5"}, {"index": 0x277, "data": 2}]
    assert (await client.put(f"{path}/msrs", json={"msrs": msrs})).json() == {"taken": 1}
    asked = await client.get(f"{path}/msrs", params={"index": ["0xc0000081", "0x1234"]})
    assert asked.json() == {"msrs": [{"index": "0xc0000081", "data": "0x5"}]}
    assert len((await client.get(f"{path}/msrs")).json()["msrs"]) > 20
    assert_problem(await client.get("/vcpu/0/msrs"), 501, "ENOTTY")
    await client.delete("/vms/model")
