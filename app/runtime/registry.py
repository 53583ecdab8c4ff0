"""All virtual machines of one server, and the limits that keep a client from taking everything."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import count
from typing import Any

from app.core.errors import KvmError
from app.core.variants import variant as find_variant
from app.core.vm import Switches, System
from app.guests.engines import engine_factory
from app.runtime.durable import Journal, inside
from app.runtime.events import EventLog
from app.runtime.machine import Machine
from app.settings import Limits

CREATE = "KVM_CREATE_VM"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


DEFAULT_LIMITS = Limits()


class Registry:
    """Creates, finds and destroys machines; they share one event log and one kvm module."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, log: EventLog | None = None) -> None:
        self.limits = limits
        self.log = log or EventLog()
        self.system = System()
        self.machines: dict[str, Machine] = {}
        self.journal: Journal | None = None
        self._numbers = count(1)

    def get(self, vm_id: str) -> Machine:
        """Return one machine. ENODEV if there is none of that name."""
        found = self.machines.get(vm_id)
        if found is None:
            raise KvmError(errno.ENODEV, "vm", f"there is no virtual machine {vm_id!r}", field="vm")
        return found

    async def create(
        self,
        vm_id: str | None = None,
        *,
        vcpus: int = 0,
        variant: str = "sticky",
        engine: str = "script",
        mode: str = "precise",
        irqchip: bool = False,
        switches: Mapping[str, Any] | None = None,
        programs: Sequence[object] | Mapping[str, object] | None = None,
        seed: int = 0,
    ) -> Machine:
        """KVM_CREATE_VM and then KVM_CREATE_VCPU for ids 0 to ``vcpus`` - 1: all of it or nothing.

        EEXIST: the name is taken; EINVAL: a bad name, variant, engine, mode, switch or program;
        ENOSPC: over the number of VMs.
        """
        vm_id = vm_id or self._free_name()
        machine = self.make(
            vm_id, vcpus=vcpus, variant=variant, engine=engine, mode=mode, irqchip=irqchip, switches=switches, seed=seed
        )
        self.machines[vm_id] = machine
        self.log.emit(vm_id, "kvm_create_vm", None, {"variant": variant, "engine": engine, "mode": mode})
        token = inside.set(True)  # one record for all of it
        try:
            given = _programs(programs)
            for vcpu_id in range(vcpus):
                await machine.create_vcpu(vcpu_id, given.pop(vcpu_id, None))
            _check_all_used(given)
        except BaseException:
            await self.destroy(vm_id)
            raise
        finally:
            inside.reset(token)
        await machine.committed()
        return machine

    def make(
        self,
        vm_id: str,
        *,
        vcpus: int = 0,
        variant: str,
        engine: str,
        mode: str,
        irqchip: bool,
        switches: Mapping[str, Any] | None,
        seed: int,
    ) -> Machine:
        """Make a machine without vCPUs that is not known here yet. Errors as ``create``, for ``vcpus`` to come."""
        self._check_create(vm_id, vcpus)
        find_variant(variant)
        engine_factory(engine, mode)
        if self.journal is not None:
            self.journal.check(CREATE)
        machine = _machine_class(engine)(
            vm_id,
            log=self.log,
            system=self.system,
            variant=variant,
            engine=engine,
            mode=mode,
            irqchip=irqchip,
            switches=_switches(switches or {}),
            seed=seed,
            memory_limit=self.limits.memory_per_vm,
        )
        if self.journal is not None and engine != "kvm":  # the real kernel's machines end with the process
            self.journal.attach(machine)
        return machine

    async def destroy(self, vm_id: str) -> None:
        """Destroy one machine. ENODEV if there is none of that name."""
        machine = self.get(vm_id)
        await machine.destroy()
        if self.machines.get(vm_id) is machine:
            del self.machines[vm_id]
            self.log.emit(vm_id, "kvm_destroy_vm", None, {})
        if machine.journal is not None:
            await machine.journal.forget(machine)

    async def reset(self) -> None:
        """Destroy everything."""
        for vm_id in tuple(self.machines):
            await self.destroy(vm_id)

    def describe(self) -> list[dict[str, Any]]:
        """The shapes of all machines."""
        return [machine.describe() for machine in self.machines.values()]

    @property
    def parked_runs(self) -> int:
        """KVM_RUN calls of clients that are under way now."""
        return sum(len(machine.runs) for machine in self.machines.values())

    def _free_name(self) -> str:
        return next(name for name in map("vm{}".format, self._numbers) if name not in self.machines)

    def _check_create(self, vm_id: str, vcpus: int) -> None:
        if not NAME.fullmatch(vm_id):
            raise KvmError(
                errno.EINVAL, CREATE, f"{vm_id!r} is no name: letters, digits, '.', '_', '-', 64 at most", field="id"
            )
        if vm_id in self.machines:
            raise KvmError(errno.EEXIST, CREATE, f"virtual machine {vm_id!r} exists", field="id")
        if len(self.machines) >= self.limits.vms:
            raise KvmError(errno.ENOSPC, CREATE, f"this server has at most {self.limits.vms} virtual machines")
        if not 0 <= vcpus <= self.limits.vcpus_per_vm:
            raise KvmError(
                errno.EINVAL, CREATE, f"{vcpus} is not between 0 and {self.limits.vcpus_per_vm}", field="vcpus"
            )


def _machine_class(engine: str) -> type[Machine]:
    if engine != "kvm":
        return Machine
    from app.runtime.device import DeviceMachine  # noqa: PLC0415  /dev/kvm is reached for only when it is asked for

    return DeviceMachine


def _switches(given: Mapping[str, Any]) -> Switches:
    known = {field.name for field in fields(Switches)}
    if unknown := set(given) - known:
        raise KvmError(
            errno.EINVAL, CREATE, f"no switch {min(unknown)!r}; there are {', '.join(sorted(known))}", field="switches"
        )
    if given.get("exit_test", "before_r") not in ("before_r", "after_r"):
        raise KvmError(errno.EINVAL, CREATE, "exit_test is before_r or after_r", field="switches.exit_test")
    return Switches(**given)


def _programs(given: Sequence[object] | Mapping[str, object] | None) -> dict[int, object]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {int(vcpu_id): program for vcpu_id, program in given.items()}
    return dict(enumerate(given))


def _check_all_used(programs: Mapping[int, object]) -> None:
    if programs:
        raise KvmError(errno.EINVAL, CREATE, f"there is no vcpu {min(programs)} for its program", field="programs")
