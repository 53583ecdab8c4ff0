"""An example for every body that is JSON: each is sent by a test, and answered with success.

They fit together: on a fresh server they can be sent from top to bottom.
"""

from __future__ import annotations

from typing import Any

_RAM = "0x7f0000000000"  # where the first allocation of a VM lies


def _one(summary: str, value: Any) -> dict[str, Any]:
    return {"example": {"summary": summary, "value": value}}


EXAMPLES: dict[str, dict[str, Any]] = {
    "create_vm": _one(
        "Two vCPUs that read a page in a loop, under the repaired variant",
        {"id": "mine", "vcpus": 2, "variant": "holds", "programs": [[["read", "0x1000"]], [["read", "0x1000"]]]},
    ),
    "create_host_memory": _one("64 KiB of zeros", {"size": "0x10000", "name": "ram"}),
    "set_memory_region": _one(
        "Slot with a log of dirty pages",
        {"flags": ["LOG_DIRTY_PAGES"], "guest_phys_addr": "0x0", "memory_size": "0x10000", "userspace_addr": _RAM},
    ),
    "memory_transaction": _one(
        "Delete a slot and make it again, smaller, inside a kick",
        {
            "protect": "kick",
            "operations": [
                {"slot": 0, "memory_size": 0},
                {"slot": 0, "guest_phys_addr": "0x0", "memory_size": "0x8000", "userspace_addr": _RAM, "flags": 1},
            ],
        },
    ),
    "clear_dirty_log": _one("The first 8 pages", {"first_page": 0, "num_pages": 8, "bits": [0, 1, 2]}),
    "create_vcpu": _one("A vCPU that writes to a port", {"id": 9, "program": [["out", "0x3f8", 65], ["hlt"]]}),
    "set_program": _one(
        "Write a port, then read memory until it is kicked", [["out", "0x3f8", 65], ["read", "0x1000", 4]]
    ),
    "run": _one("Give the device's answer, and wait for a second at most", {"reply": "2a", "timeout_ms": 1000}),
    "kick": _one("Give up after a second", {"timeout_ms": 1000}),
    "set_regs": _one("Where to begin", {"rip": "0x1000", "rflags": "0x2"}),
    "set_sregs": _one("A flat code segment", {"cs": {"base": "0x0", "selector": 0}}),
    "set_mp_state": _one("Let it run", {"mp_state": "RUNNABLE"}),
    "interrupt": _one("Vector 32", {"vector": 32}),
    "start": _one("A VMM that calls KVM_RUN again at once after a kick", {"behaviour": "careless"}),
    "set_cpuid": _one("One leaf", {"entries": [{"function": 0, "eax": 1, "ebx": 0x756E6547}]}),
    "set_msrs": _one("STAR", {"msrs": [{"index": "0xc0000081", "data": "0x0"}]}),
    "create_irqchip": _one("Local APICs only, for userspace's IOAPIC of 24 pins", {"split": True, "pins": 24}),
    "report_tpr_access": _one("Leave at each", {"enabled": True}),
    "set_vapic_addr": _one("No word in guest memory", {"vapic_addr": 0}),
    "create_pit": _one("With port 0x61", {"flags": 1}),
    "set_pit": _one("All channels at rest", {"state": ""}),
    "set_irqchip": _one("A controller as after power-on", {"state": ""}),
    "set_gsi_routing": _one(
        "A pin and a message",
        {"entries": [{"gsi": 4, "irqchip": 2, "pin": 4}, {"gsi": 5, "address": "0xfee00000", "data": 65}]},
    ),
    "irq_line": _one("Raise line 4", {"irq": 4, "level": 1}),
    "signal_msi": _one("Vector 65 to the APIC with id 0", {"address": "0xfee00000", "data": 65}),
    "set_lapic": _one("An APIC without any state", {"state": ""}),
    "play_script": _one(
        "An arena, a slot, and a look at the registers",
        [
            {"op": "arena", "args": {"name": "page", "size": 4096}},
            {
                "op": "set_memory_region",
                "args": {
                    "slot": 7,
                    "flags": 0,
                    "gpa": "0x100000",
                    "size": 4096,
                    "host": {"arena": "page", "offset": 0},
                },
            },
            {"op": "get_regs", "args": {"vcpu": 0}},
        ],
    ),
    "start_exploration": _one(
        "Does the patch as posted lose an exit?",
        {"variants": ["sticky"], "behaviours": ["well"], "properties": ["lost_exit"]},
    ),
    "create_session": _one("The code of the URL", {"code": "what-follows-#code="}),
}
PARAMETERS = {
    "vm": "default",
    "id": 0,
    "slot": 0,
    "chip": 0,
    "userspace_addr": _RAM,
    "exploration": "x1",
    "errno": "einval",
}
"""What paths are filled in with."""
