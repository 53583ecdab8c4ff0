"""What observers see: the JSON shapes of a vCPU, a slot, a lock and a run's answer, read without an operation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from kickstand.core.atomics import Shared
from kickstand.core.errors import errno_name
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import (
    DebugExit,
    EoiExit,
    HypercallExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    MsrExit,
    TprAccessExit,
    UserExit,
)
from kickstand.core.run.run_page import Cause, PageWrites, RunResult
from kickstand.core.shared.requests import request_names
from kickstand.core.shared.rwsem import RwSemaphore
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.runtime.driver.tasks import Waiter
from kickstand.runtime.vmm import threads as userspace
from kickstand.runtime.vmm.process import KICKER

if TYPE_CHECKING:
    from kickstand.core.memslots import Slot
    from kickstand.core.vm import Vm


def page_writes(reply: bytes | None, immediate_exit: bool | None) -> PageWrites | None:
    """What a VMM writes before KVM_RUN, or None for nothing."""
    return None if reply is None and immediate_exit is None else PageWrites(reply, immediate_exit)


def vcpu(vcpu: AnyVcpu, thread: userspace.VmmThread | None) -> dict[str, Any]:
    """A vCPU's shape."""
    return {
        "id": vcpu.id,
        "state": vcpu.watched.state.value,
        "mode": vcpu.mode.mode.name,
        "mp_state": vcpu.arch.mp_state.name,
        "requests": request_names(vcpu.requests.bits),
        "exit_reason": vcpu.run_page.exit_reason.kernel_name,
        "thread": userspace.describe(thread),
        "counters": vcpu.watched.counters.by_name(),
    }


def region(slot: Slot) -> dict[str, Any]:
    """A memory slot's shape."""
    return {
        "slot": slot.id,
        "flags": slot.flags.value,
        "guest_phys_addr": hex(slot.base_gfn << PAGE_SHIFT),
        "memory_size": slot.npages << PAGE_SHIFT,
        "userspace_addr": hex(slot.userspace_addr),
    }


def locks(vm: Vm) -> dict[str, Any]:
    """The shape of the variant's lock: vCPUs that are inside, the writer, and the queue in order with ages.

    A variant without a semaphore has other shared objects of its own: whoever waits for one of them is in the queue.
    """
    by_tid = {vcpu.tid: vcpu.id for vcpu in vm.vcpus.values()}
    inside = [vcpu.id for vcpu in vm.vcpus.values() if vcpu.watched.inside]
    kept = (value.values() if isinstance(value, dict) else (value,) for value in vars(vm.variant).values())
    gates = [gate for values in kept for gate in values if isinstance(gate, Shared)]  # its own, and those of each vCPU
    writer = next((gate.writer for gate in gates if isinstance(gate, RwSemaphore) and gate.writer), None)
    now = time.monotonic_ns()
    waiting = sorted(chain.from_iterable(_queue(gate, now) for gate in gates), key=lambda entry: -entry[2])
    queue = [{"who": by_tid.get(tid, tid), "side": side, "age_ns": age} for tid, side, age in waiting]
    return {"readers": inside, "writer": writer, "queue": queue}


def _queue(gate: Shared, now: int) -> Iterator[tuple[str, str, int]]:
    """Who waits for a shared object, for which side, and for how many nanoseconds."""
    if isinstance(gate, RwSemaphore):
        for tid, side in gate.queue:
            waiter = gate.waiters.get(tid)
            yield tid, side.value, now - waiter.since_ns if isinstance(waiter, Waiter) else 0
        return
    for waiter in gate.waiters.values():
        if isinstance(waiter, Waiter):
            yield waiter.who, "write" if f"/{KICKER}#" in waiter.who else "read", now - waiter.since_ns


def run_result(result: RunResult, cause: Cause | None, kick_id: int | None, run_ns: int, seq: int) -> dict[str, Any]:
    """KVM_RUN's answer."""
    answer: dict[str, Any] = {
        "ret": result.ret,
        "errno": None if result.errno is None else errno_name(result.errno),
        "exit_reason": result.exit_reason.kernel_name,
        "exit_reason_value": int(result.exit_reason),
        "cause": None if cause is None else cause.value,
        "kick_id": kick_id,
        "run_ns": run_ns,
        "seq": seq,
    }
    return answer | exit_details(result.exit)


def exit_details(exit: UserExit | None) -> dict[str, Any]:
    """The union arm of ``kvm_run`` that an exit fills in."""
    if isinstance(exit, IoExit):
        data = exit.data.hex() if exit.direction == "out" else None
        where = {"direction": exit.direction, "size": exit.size, "port": exit.port, "count": exit.count}
        return {"io": {**where, "data": data}}
    if isinstance(exit, MmioExit):
        data = exit.data.hex() if exit.is_write else None
        where = {"phys_addr": hex(exit.phys_addr), "len": exit.len, "is_write": exit.is_write}
        return {"mmio": {**where, "data": data}}
    if isinstance(exit, EoiExit):
        return {"eoi": {"vector": exit.vector}}
    if isinstance(exit, TprAccessExit):
        return {"tpr_access": {"rip": hex(exit.rip), "is_write": exit.is_write}}
    if isinstance(exit, InternalErrorExit):
        return {
            "internal_error": {
                "suberror": int(exit.suberror),
                "ndata": len(exit.data),
                "data": [hex(word) for word in exit.data],
            }
        }
    if isinstance(exit, MsrExit):
        value = hex(exit.value) if exit.is_write else None
        return {"msr": {"index": hex(exit.index), "reason": exit.msr_reason, "data": value}}
    if isinstance(exit, HypercallExit):
        return {"hypercall": {"nr": exit.nr, "args": list(map(hex, exit.args)), "longmode": exit.longmode}}
    if isinstance(exit, DebugExit):
        where = {"pc": hex(exit.pc), "dr6": hex(exit.dr6), "dr7": hex(exit.dr7)}
        return {"debug": {"exception": exit.exception, **where}}
    return {}
