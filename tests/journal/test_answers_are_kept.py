"""What a script operation answered is kept: nothing is left to record of the machine when the answer is there."""

from dataclasses import fields

import pytest

from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.journal import form
from kickstand.journal.disk.directory import Directory, warn
from kickstand.journal.journal import StateJournal
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.operations import OPERATIONS
from kickstand.scripts.play.player import Player
from kickstand.settings import JournalSettings

PAGE = 4096
HOST = {"arena": "ram", "offset": 0}
SLOT = {"slot": 0, "flags": 1, "gpa": 0, "size": 4 * PAGE, "host": HOST}
GONE = {"slot": 0, "flags": 0, "gpa": 0, "size": 0, "host": HOST}
# In an order in which each can succeed, and changes what it can.
SCRIPT = {
    "create_irqchip": {},
    "create_pit": {"flags": 0},
    "get_pit": {},
    "set_pit": {"hex": "00" * 13 + "ff"},  # no mode: nothing is due
    "set_gsi_routing": {"entries": [{"gsi": 4, "irqchip": 2, "pin": 4}]},
    "get_irqchip": {"chip_id": 0},
    "set_irqchip": {"chip_id": 0, "hex": ""},
    "create_vcpu": {"id": 0, "program": [["write", 0, 1], ["out", 1, 1]]},
    "arena": {"name": "ram", "size": 8 * PAGE},
    "write_host": {"arena": "ram", "offset": 0, "hex": "00ff"},
    "fill_host": {"arena": "ram", "offset": 8, "length": 8, "byte": 7},
    "fill_pattern": {"arena": "ram"},
    "read_host": {"arena": "ram", "offset": 0, "length": 8},
    "hash_host": {"arena": "ram"},
    "set_memory_region": SLOT,
    "set_cpuid_supported": {"vcpu": 0},
    "set_regs": {"vcpu": 0, "regs": {"rax": 1}},
    "change_regs": {"vcpu": 0, "regs": {"rbx": 2}},
    "get_regs": {"vcpu": 0},
    "set_sregs": {"vcpu": 0, "changes": {"cr3": PAGE}},
    "get_sregs": {"vcpu": 0, "only": ["cr3"]},
    "set_program": {"vcpu": 0, "program": [["write", PAGE, 1], ["out", 2, 1]]},
    "run": {"vcpu": 0},
    "get_dirty_log": {"slot": 0},
    "clear_dirty_log": {"slot": 0, "first_page": 0, "num_pages": 4, "bits": [0]},
    "set_mp_state": {"vcpu": 0, "mp_state": 3},
    "get_mp_state": {"vcpu": 0},
    "nmi": {"vcpu": 0},
    "irq_line": {"irq": 4, "level": 1},
    "signal_msi": {"address": 0xFEE00000, "data": 0x40},
    "irq_line_status": {"irq": 4, "level": 0},
    "get_lapic": {"vcpu": 0},
    "set_lapic": {"vcpu": 0, "hex": ""},
    "set_cpuid": {"vcpu": 0, "entries": []},
    "get_cpuid": {"vcpu": 0},
    "set_msrs": {"vcpu": 0, "msrs": []},
    "get_msrs": {"vcpu": 0, "indices": []},
    "interrupt": {"vcpu": 0, "vector": 32},
    "signal": {"vcpu": 0},
    "set_run_flag": {"vcpu": 0, "flag": "immediate_exit", "value": 1},
    "start_run": {"vcpu": 0},
    "finish_run": {"vcpu": 0},
    "kick": {},
    "resume": {},
    "memory_transaction": {"operations": [GONE, SLOT], "protect": "none"},
    "raw_ioctl": {"on": "vm", "request": 0xAEFE},
    "ioctl": {"name": "KVM_SET_CLOCK", "fields": {"clock": 5}},
    "coalesced": {},
    "dirty_ring": {"vcpu": 0},
    "start_thread": {"vcpu": 0},
    "stop_thread": {"vcpu": 0},
}
NOT_DONE = {
    "dirty_ring",
    "interrupt",
    "raw_ioctl",
    "set_cpuid",
    "get_cpuid",
    "set_msrs",
    "get_msrs",
}  # refused here; what is refused is kept as well


@pytest.fixture
async def journal(tmp_path):
    registry = Registry()
    journal = StateJournal(Directory(tmp_path / "state", warn), registry, JournalSettings(tick_s=60))
    await journal.start()
    yield journal
    await journal.stop()
    await registry.reset()


async def test_nothing_is_left_to_record_when_an_operation_has_answered(journal):
    assert set(SCRIPT) == set(OPERATIONS)
    machine = await journal.registry.create("vm", irqchip=False)
    recorder = journal._kept[machine].recorder
    player = Player(machine)
    for op, args in SCRIPT.items():
        answer = await player.play({"op": op, "args": args})
        assert (answer["ret"] == 0 or answer["errno"] in ("EINTR", "EAGAIN")) is (op not in NOT_DONE), (op, answer)
        if op != "start_run":  # its outcome is told by finish_run
            assert recorder.changed(tuple(machine.vm.vcpus)) == {}, op
            assert journal.store.done == journal.store.submitted, op


def test_all_that_userspace_sets_up_of_a_vm_is_kept():
    apart = {"clock", "coalesced"}  # parts of their own
    until_then = {"tsc"}  # which writes of counters belong together: of a moment
    assert {field.name for field in fields(KvmArch)} - apart - until_then == set(form.KvmArch.model_fields)
