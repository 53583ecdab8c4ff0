"""Interrupt controllers over HTTP: their state is read and put back, lines are routed, messages have their modes."""

import asyncio

from tests.api.live import assert_problem


async def machine(client, **options):
    made = (await client.post("/vms", json={"irqchip": True, "vcpus": 2, "engine": "x86", **options})).json()
    return f"/vms/{made['id']}"


async def test_an_apics_registers_are_read_and_put_back(client):
    vm = await machine(client)
    page = bytearray.fromhex((await client.get(f"{vm}/vcpu/1/lapic")).json()["state"])
    assert page[0x20:0x24] == b"\0\0\0\1"
    page[0xF0:0xF2] = b"\xff\x01"
    assert (await client.put(f"{vm}/vcpu/1/lapic", json={"state": page.hex()})).json()["ret"] == 0
    assert (await client.get(f"{vm}/vcpu/1/lapic")).json()["state"] == page.hex()


async def test_a_line_goes_where_it_is_routed(client):
    vm = await machine(client)
    entries = [{"gsi": 40, "irqchip": 2, "pin": 5}, {"gsi": 41, "address": "0xfee01000", "data": 0x31}]
    assert (await client.put(f"{vm}/gsi-routing", json={"entries": entries})).json()["ret"] == 0
    await client.post(f"{vm}/irq-line", json={"irq": 40, "level": 1})
    state = bytes.fromhex((await client.get(f"{vm}/irqchip/2")).json()["state"])
    assert int.from_bytes(state[16:20], "little") == 1 << 5


async def test_an_msi_is_delivered_in_the_mode_that_it_says(client):
    vm = await machine(client)
    sent = {}
    for mode in (0, 2, 4, 5, 6):
        body = {"address": "0xfee01000", "data": mode << 8 | 0x10}
        sent[mode] = (await client.post(f"{vm}/msi", json=body)).json()["delivered"]
    assert sent == {0: False, 2: False, 4: True, 5: True, 6: True}  # disabled, no SMM, NMI, INIT, SIPI
    assert (await client.get(f"{vm}/vcpu/1/mp-state")).json()["mp_state"] == "RUNNABLE"


async def test_an_init_forgets_the_nmi_that_waited(client):
    """``kvm_vcpu_reset``: what waited for delivery is gone."""
    for engine in ("script", "x86"):
        vm = await machine(client, engine=engine)
        await client.post(f"{vm}/vcpu/1/nmi")
        assert (await client.get(f"{vm}/vcpu/1/interrupts")).json()["nmi"] is True
        await client.post(f"{vm}/msi", json={"address": "0xfee01000", "data": 0x500})
        assert (await client.get(f"{vm}/vcpu/1/mp-state")).json()["mp_state"] == "INIT_RECEIVED"
        assert (await client.get(f"{vm}/vcpu/1/interrupts")).json()["nmi"] is False


async def test_a_pit_is_created_once_and_keeps_its_state(client):
    vm = await machine(client)
    assert_problem(await client.get(f"{vm}/pit"), 404, "ENXIO")
    assert (await client.post(f"{vm}/pit", json={"flags": 1})).json()["ret"] == 0
    assert_problem(await client.post(f"{vm}/pit"), 409, "EEXIST")
    state = (await client.get(f"{vm}/pit")).json()["state"]
    assert (await client.put(f"{vm}/pit", json={"state": state})).json()["ret"] == 0


async def test_what_there_is_not_is_refused_by_name(client):
    vm = await machine(client)
    assert_problem(await client.put(f"{vm}/gsi-routing", json={"entries": [{"gsi": 1}]}), 422, "EINVAL")
    both = [{"gsi": 1, "irqchip": 2, "pin": 1}, {"gsi": 1, "irqchip": 2, "pin": 2}]
    assert_problem(await client.put(f"{vm}/gsi-routing", json={"entries": both}), 422, "EINVAL")
    assert_problem(await client.put(f"{vm}/pit", json={"state": "00" * 113}), 422, "EINVAL")
    bare = await machine(client, irqchip=False)
    assert_problem(await client.get(f"{bare}/irqchip/0"), 404, "ENXIO")
    assert_problem(await client.get(f"{bare}/vcpu/0/lapic"), 422, "EINVAL")


async def test_who_sleeps_and_what_would_wake_it_is_told(client):
    machine = {"id": "asleep", "vcpus": 2, "irqchip": True, "programs": [[["hlt"]], [["hlt"]]]}
    assert (await client.post("/vms", json=machine)).status_code == 201
    vm = "/vms/asleep"
    waiting = (await client.get(f"{vm}/vcpu/1/interrupts")).json()
    assert (waiting["asleep"], waiting["wakes"]) == (False, [])
    run = asyncio.create_task(client.post(f"{vm}/vcpu/0/run", json={"timeout_ms": 5_000}))
    while not (halted := (await client.get(f"{vm}/vcpu/0/interrupts")).json())["asleep"]:
        await asyncio.sleep(0.01)
    assert {"interrupt", "nmi", "init", "signal"} <= set(halted["wakes"])
    assert (halted["requested"], halted["least_vector"]) == ([], 0x10)
    await client.post(f"{vm}/vcpu/0/signal")
    await run
    await client.post(f"{vm}/msi", json={"address": "0xfee00000", "data": 0x41})
    assert (await client.get(f"{vm}/vcpu/0/interrupts")).json()["requested"] == [0x41]
