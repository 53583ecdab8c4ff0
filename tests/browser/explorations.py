"""Answers of an explorer, for a page that is tested without one."""

import json

CELLS = {
    ("none", "spurious_mmio"): "violated",
    ("none", "missing_slot"): "violated",
    ("none", "kick_returns"): "holds",
    ("sticky", "spurious_mmio"): "holds",
    ("sticky", "missing_slot"): "holds",
    ("sticky", "kick_returns"): "holds",
    ("sticky", "bounded_busy"): "violated",
    ("sticky", "lost_exit"): "violated",
    ("clear_after_up_write", "spurious_mmio"): "violated",
    ("clear_after_up_write", "kick_returns"): "undecided",
    ("holds", "spurious_mmio"): "holds",
    ("holds", "missing_slot"): "holds",
    ("holds", "bounded_busy"): "holds",
    ("holds", "lost_exit"): "holds",
    ("holds", "kick_returns"): "holds",
    ("holds", "resume_runs"): "holds",
}
STEPS = [
    ("CPU0", "KVM_RUN: down_read", {"mem_transaction": "read by CPU0"}),
    ("CPU0", "vcpu_enter_guest: no request", None),
    ("VMM", "KICK: make request", {"cpu0.requests": "USERSPACE_KICK"}),
    ("VMM", "KICK: down_write waits", {"mem_transaction": "read by CPU0, VMM queued"}),
    ("CPU0", "IPI, exit; EINTR, up_read", {"mem_transaction": "free"}),
    ("VMM", "KICK: down_write, up_write, clear", {"cpu0.requests": "-"}),
    ("CPU0", "KVM_RUN: down_read", {"mem_transaction": "read by CPU0"}),
    ("VMM", "DELETE m1", {"slot 1": "hole"}),
    ("VMM", "DELETE m2", {"slot 2": "hole"}),
    ("CPU0", "guest reads m2: no slot", {"cpu0.exit": "KVM_EXIT_MMIO"}),
]


def cell(variant, property_, verdict):
    made = {
        "scenario": "merge", "variant": variant, "behaviour": "careless", "vcpus": 1, "vmms": 1,
        "property": property_, "verdict": verdict, "states": 18244, "transitions": 50123, "seconds": 0.61,
        "steps": len(STEPS) if verdict == "violated" else None, "fairness": None,
        "token": "ks1-3fa9c2d1" if verdict == "violated" else None,
    }  # fmt: skip
    if verdict == "violated":
        steps = [
            {
                "thread": thread,
                "operation": operation,
                "result": "None",
                "changed": [{"name": name, "before": "-", "after": after} for name, after in (changed or {}).items()],
                "loop": property_ == "bounded_busy" and number >= 6,
            }
            for number, (thread, operation, changed) in enumerate(STEPS)
        ]
        made["counterexample"] = {"threads": ["VMM", "CPU0"], "steps": steps, "verdict": "violated", "blocked": []}
    return made


class Explorer:
    """Decides a few more cells each time it is asked."""

    def __init__(self, pace=4):
        self.pace = pace
        self.asked = None
        self.decided = 0

    def install(self, page):
        page.route("**/explorations", self.create)
        page.route("**/explorations/x1", self.read)

    def create(self, route):
        if route.request.method != "POST":
            route.fulfill(json={"explorations": []})
            return
        self.asked = json.loads(route.request.post_data)
        route.fulfill(status=202, json={"id": "x1"})

    def read(self, route):
        self.decided = min(len(CELLS), self.decided + self.pace)
        cells = [cell(*name, verdict) for name, verdict in list(CELLS.items())[: self.decided]]
        done = self.decided == len(CELLS)
        route.fulfill(
            json={
                "id": "x1",
                "state": "done" if done else "running",
                "progress": {"cells_done": self.decided, "cells": len(CELLS), "search": None},
                "cells": cells,
                "asked": self.asked,
            }
        )
