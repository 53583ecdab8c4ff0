"""Kick and resume: the windows of one machine, in which no vCPU is in KVM_RUN."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.trace import USER
from kickstand.runtime.vmm.flag import Flag
from kickstand.runtime.vmm.process import KICKER, Process


class Window:
    """Opens and closes them. ``proceed`` is the resume flag of well-behaved userspace."""

    def __init__(self, process: Process) -> None:
        self.kick_id = 0
        self.drained_ns = 0  # all kicks together
        self.unsettled = 0  # windows that are opening, or belong to a transaction: nobody was told of them
        self.proceed = Flag(is_set=True)
        self._process = process

    @property
    def count(self) -> int:
        """How many windows are open."""
        return self._process.vm.variant.open_windows

    async def kick(self, timeout_ms: int | None = None) -> dict[str, Any]:
        """KVM_KICK_ALL_RUNNING_VCPUS.

        ETIMEDOUT after ``timeout_ms``, with the vCPUs that are still inside; the kick is taken back then.
        """
        vm = self._process.vm
        self.proceed.clear()
        met = [vcpu for vcpu in vm.vcpus.values() if vcpu.watched.state is not USER]
        was_open = self.count
        started = time.monotonic_ns()
        if not was_open:
            self.kick_id += 1
        self.unsettled += 1
        try:
            changed = await self._process.by_thread(vm.kick_all_running_vcpus, timeout_ms, KICKER)
        except TimeoutError:
            raise self._kick_timed_out(met, timeout_ms) from None
        except BaseException:
            self._open_gate()
            raise
        finally:
            self.unsettled -= 1
        drain_ns = time.monotonic_ns() - started
        self.drained_ns += drain_ns
        return {
            "kick_id": self.kick_id,
            "changed": changed,
            "vcpus_stopped": len([vcpu for vcpu in met if vcpu.watched.state is USER]),
            "holds": self.count,
            "drain_ns": drain_ns,
            "seq": self._process.log.seq,
        }

    def _kick_timed_out(self, met: Sequence[AnyVcpu], timeout_ms: int | None) -> KvmError:
        self._open_gate()
        still = [vcpu.id for vcpu in met if vcpu.watched.inside]
        return KvmError(
            errno.ETIMEDOUT,
            "KVM_KICK_ALL_RUNNING_VCPUS",
            f"after {timeout_ms} ms vcpus {still} were still in KVM_RUN; the kick was taken back",
            vcpus=still,
        )

    async def resume(self) -> dict[str, Any]:
        """KVM_RESUME_ALL_KICKED_VCPUS; lets well-behaved userspace go on."""
        was_open = self.count
        cleared = await self._process.by_thread(self._process.vm.resume_all_kicked_vcpus)
        self._open_gate()
        return {
            "changed": bool(cleared) or (was_open > 0 and not self.count),
            "cleared": cleared,
            "holds": self.count,
            "seq": self._process.log.seq,
        }

    def _open_gate(self) -> None:
        if not self.count:
            self.proceed.set()

    async def come_up(self) -> None:
        """A machine was restored: an open window stays as it was, whoever has left through it; else KICK opens one."""
        self.proceed.clear()
        if not self.count:
            self.kick_id += 1
            await self._process.by_thread(self._process.vm.kick_all_running_vcpus, role=KICKER)
