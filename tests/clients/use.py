"""A program on the client that openapi-python-client makes; run beside it, with the server's address."""

import sys

from kickstand_client import Client
from kickstand_client.api.memory import create_host_memory, memory_transaction, set_memory_region
from kickstand_client.api.vcpus import run, set_regs
from kickstand_client.api.vms import create_vm, delete_vm, get_vm, kick, resume
from kickstand_client.models import CreateHostMemory, CreateVm, Kick, RegionIn, RegsIn, Run, SlottedRegion, Transaction

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
made = create_vm.sync(client=client, body=CreateVm(id="made", vcpus=1, programs=[[["out", 0x3F8, 65], ["in", 0x3F8]]]))
assert made.vcpus[0].state == "user"
memory = create_host_memory.sync("made", client=client, body=CreateHostMemory(size="0x2000"))
region = {"guest_phys_addr": 0, "memory_size": 0x2000, "userspace_addr": memory.userspace_addr}
assert set_memory_region.sync("made", 0, client=client, body=RegionIn(**region)).slot == 0
assert run.sync("made", 0, client=client).io.data == "41"
assert run.sync("made", 0, client=client).io.direction == "in"
assert kick.sync("made", client=client).changed  # with no body at all
assert not kick.sync("made", client=client, body=Kick(timeout_ms=1000)).changed
assert run.sync("made", 0, client=client, body=Run(reply="2a")).cause == "userspace_kick"
assert resume.sync("made", client=client).cleared == 1
change = Transaction(operations=[SlottedRegion(slot=0, memory_size=0)], protect="kick")
assert memory_transaction.sync("made", client=client, body=change).results[0].ret == 0
assert set_regs.sync("made", 0, client=client, body=RegsIn(rax="0xff")).rax == "0xff"
gone = set_memory_region.sync_detailed("made", 0, client=client, body=RegionIn(memory_size=0))
assert gone.status_code in (204, 422)
assert delete_vm.sync_detailed("made", client=client).status_code == 204
problem = get_vm.sync("made", client=client)
assert (problem.errno, problem.status, problem.type_) == ("ENODEV", 404, "/problems/enodev")
print("created, ran, kicked, resumed")  # noqa: T201
