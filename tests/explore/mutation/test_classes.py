"""Of each class of mistake one is planted: it is convicted by the property that is about it."""

import re
from functools import cache

import pytest

from tests.explore.mutation.battery import SIGNALS, CellName, convictions, mutants
from tests.long import either

pytestmark = pytest.mark.slow
CLASSES = [
    ("Sticky.kick: no .*wait_for_readers", "merge", "sticky", "kick_drains"),
    ("Window.leave: no .*changed", "merge", "holds", "lost_wakeup"),
    ("Vcpu.kvm_vcpu_block: no .*set_running", "merge", "sticky", "balance"),
    ("Vcpu.kvm_arch_vcpu_ioctl_run: never: if pending", "pending_io", "holds", "completed_once"),
    ("Memslots.guest_access: no .*dirty", "dirty_log", "sticky", "dirty_kept"),
    ("Srcu.synchronize: no ", "merge", "sticky", "balance"),
    ("Vcpu.vcpu_run: always: if before_r", "merge", "sticky", "eintr_has_cause"),
]
FURTHER = [
    ("Window.release: no .*changed", "merge", "holds", "lost_wakeup"),
    ("Window.consumed: no .*changed", "other_ioctl", "holds", "lost_wakeup"),
    ("RwSemaphore._wake_head: no .*changed_for", "merge", "sticky", "lost_wakeup"),
    ("RwSemaphore._grant_readers: no .*changed_for", "merge", "sticky", "lost_wakeup"),
    ("VcpuMode.leave: no .*changed", "merge", "sticky", "lost_wakeup"),
    ("Srcu.exit: no .*changed", "merge", "sticky", "lost_wakeup"),
    ("Task.wake_up: no .*changed", "merge", "sticky", "lost_wakeup"),
    ("Vcpu.vcpu_enter_guest: no .*srcu_read_lock", "merge", "sticky", "balance"),
    ("Vcpu.vcpu_block: no .*srcu_read_lock", "merge", "sticky", "balance"),
]


@cache
def before(cell, name):
    return cell.verdicts([name])


@cache
def planted():
    return mutants()


@pytest.mark.parametrize(("pattern", "scenario", "variant", "name"), either(CLASSES, CLASSES + FURTHER))
def test_a_mistake_of_each_class_is_convicted(pattern, scenario, variant, name):
    cell = CellName(scenario, variant, "careless" if scenario == SIGNALS else "well")
    known = before(cell, name)
    mutant = next(item for item in planted() if re.search(pattern, re.sub(r":\d+:", ":", item.name)))
    mend = mutant.plant()
    try:
        assert name in convictions(known, cell.verdicts([name]))
    finally:
        mend()
