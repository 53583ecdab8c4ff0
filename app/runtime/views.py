"""What observers see: the JSON shapes of a vCPU, a slot, a lock and a run's answer, read without an operation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from app.core.errors import errno_name
from app.core.guest import InternalErrorExit, IoExit, MmioExit, UserExit
from app.core.requests import request_names
from app.core.run_page import Cause, PageWrites, RunResult
from app.core.rwsem import RwSemaphore
from app.core.trace import VcpuState
from app.core.vcpu import Vcpu
from app.runtime import userspace
from app.runtime.tasks import Waiter
from app.runtime.threads import HostThread

if TYPE_CHECKING:
    from app.core.memslots import Slot
    from app.core.vm import Vm


def page_writes(reply: bytes | None, immediate_exit: bool | None) -> PageWrites | None:
    """What a VMM writes before KVM_RUN, or None for nothing."""
    return None if reply is None and immediate_exit is None else PageWrites(reply, immediate_exit)


def vcpu(vcpu: Vcpu, thread: userspace.VmmThread | None) -> dict[str, Any]:
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
    region = slot.region()
    return {
        "slot": region.slot,
        "flags": int(slot.flags),
        "guest_phys_addr": hex(region.guest_phys_addr),
        "memory_size": region.memory_size,
        "userspace_addr": hex(region.userspace_addr),
    }


def locks(vm: Vm) -> dict[str, Any]:
    """The semaphore's shape: vCPUs that hold the read side, the writer, and the queue in order with ages."""
    by_tid = {vcpu.tid: vcpu.id for vcpu in vm.vcpus.values()}
    inside = [vcpu.id for vcpu in vm.vcpus.values() if vcpu.watched.state not in (VcpuState.USER, VcpuState.WAITING)]
    semaphore = getattr(vm.variant, "memory_transaction", None)
    if not isinstance(semaphore, RwSemaphore):
        return {"readers": inside, "writer": None, "queue": []}
    now = time.monotonic_ns()
    queue = [
        {"who": by_tid.get(tid, tid), "side": side.value, "age_ns": now - _since(semaphore, tid, now)}
        for tid, side in semaphore.queue
    ]
    return {"readers": inside, "writer": semaphore.writer, "queue": queue}


def _since(semaphore: RwSemaphore, tid: str, now: int) -> int:
    waiter = semaphore.waiters.get(tid)
    return waiter.since_ns if isinstance(waiter, Waiter | HostThread) else now


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
        return {
            "io": {
                "direction": exit.direction,
                "size": exit.size,
                "port": exit.port,
                "count": exit.count,
                "data": exit.data.hex() if exit.direction == "out" else None,
            }
        }
    if isinstance(exit, MmioExit):
        return {
            "mmio": {
                "phys_addr": hex(exit.phys_addr),
                "len": exit.len,
                "is_write": exit.is_write,
                "data": exit.data.hex() if exit.is_write else None,
            }
        }
    if isinstance(exit, InternalErrorExit):
        return {
            "internal_error": {
                "suberror": int(exit.suberror),
                "ndata": len(exit.data),
                "data": [hex(word) for word in exit.data],
            }
        }
    return {}
