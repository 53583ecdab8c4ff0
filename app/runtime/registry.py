"""All virtual machines of one server, and the limits that keep a client from taking everything."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import count
from typing import Any

from kickstand.core.arch.kvmclock import TimeSource
from kickstand.core.errors import KvmError
from kickstand.core.trace import Tracepoint
from kickstand.core.uapi import API_VERSION, MMAP_SIZE, Fd, check_extension
from kickstand.core.variants import variant as find_variant
from kickstand.core.vm import Switches, System
from kickstand.guests.engines import engine_factory
from kickstand.guests.host_memory import Budget
from kickstand.guests.time_source import NANOSECONDS
from kickstand.runtime.calls.durable import Journal, committed, kept_as_one
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver.tasks import to_the_end
from kickstand.runtime.events import EventLog
from kickstand.runtime.ioctls.model import SystemModel
from kickstand.runtime.machine import Machine
from kickstand.settings import Limits

CREATE = "KVM_CREATE_VM"
BREATH = 16  # vCPUs that are created in one turn of the event loop
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


DEFAULT_LIMITS = Limits()


class Registry(SystemModel):
    """Creates, finds and destroys machines; they share one event log and one kvm module."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, log: EventLog | None = None) -> None:
        self.limits = limits
        self.log = log or EventLog()
        self.system = System()
        self.time_source: TimeSource = NANOSECONDS
        """What machines to come take their time from."""
        self.memory = Budget(limits.memory, limits.memory_per_vm)
        self.machines: dict[str, Machine] = {}
        self.journal: Journal[Machine] | None = None
        self._numbers = count(1)
        self._leaving: dict[Machine, asyncio.Task[None]] = {}
        self.coming: set[Machine] = set()  # not complete yet: half of one is not kept

    def get(self, vm_id: str) -> Machine:
        """Return one machine. ENODEV if there is none of that name."""
        found = self.machines.get(vm_id)
        if found is None:
            raise KvmError(errno.ENODEV, "vm", f"there is no virtual machine {vm_id!r}", field="vm")
        return found

    @ioctl("KVM_GET_API_VERSION", takes=lambda argument: (argument.number,), gives=int)
    async def get_api_version(self, argument: int = 0) -> int:
        """KVM_GET_API_VERSION. EINVAL: an argument that is not 0 (``kvm_dev_ioctl``)."""
        _none("KVM_GET_API_VERSION", argument)
        return API_VERSION

    @ioctl("KVM_CHECK_EXTENSION", fd=Fd.SYSTEM, takes=lambda argument: (argument.number,), gives=int)
    async def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 for what there is not."""
        return check_extension(capability)

    @ioctl("KVM_GET_VCPU_MMAP_SIZE", takes=lambda argument: (argument.number,), gives=int)
    async def get_vcpu_mmap_size(self, argument: int = 0) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes. EINVAL: an argument that is not 0 (``kvm_dev_ioctl``)."""
        _none("KVM_GET_VCPU_MMAP_SIZE", argument)
        return MMAP_SIZE

    @ioctl("KVM_CREATE_VM")
    async def create(
        self,
        vm_id: str | None = None,
        *,
        vcpus: int = 0,
        variant: str = "sticky",
        engine: str = "script",
        mode: str = "precise",
        irqchip: bool = False,
        clock: str = "loop",
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
            vm_id,
            vcpus=vcpus,
            variant=variant,
            engine=engine,
            mode=mode,
            irqchip=irqchip,
            clock=clock,
            switches=switches,
            seed=seed,
        )
        self.machines[vm_id] = machine
        self.coming.add(machine)
        self.log.emit(vm_id, Tracepoint.KVM_CREATE_VM, None, {"variant": variant, "engine": engine, "mode": mode})
        try:
            async with kept_as_one(machine, CREATE):
                await self._populate(machine, vcpus, programs)
        except KvmError as error:
            if self.machines.get(vm_id) is machine:  # all was well, but for the disk
                raise await self._not_kept(machine, CREATE, error) from error
            raise
        return machine

    async def _populate(
        self, machine: Machine, vcpus: int, programs: Sequence[object] | Mapping[str, object] | None
    ) -> None:
        try:
            given = _programs(programs)
            for vcpu_id in range(vcpus):
                await machine.create_vcpu(vcpu_id, given.pop(vcpu_id, None))
                if vcpu_id % BREATH == BREATH - 1:
                    await asyncio.sleep(0)
            _check_all_used(given)
        except BaseException:
            await self.discard(machine)
            raise
        finally:
            self.coming.discard(machine)

    def join(self, machine: Machine) -> None:
        """Let a machine be found by its name. EEXIST: another one has it by now."""
        if machine.id in self.machines:
            raise KvmError(errno.EEXIST, CREATE, f"virtual machine {machine.id!r} exists", field="id")
        self.machines[machine.id] = machine

    async def settle(self, machine: Machine, ioctl: str) -> None:
        """Return once a new machine is kept. ENOSPC, EROFS: it cannot be, and there is no such machine."""
        try:
            await committed(machine)
        except KvmError as error:
            raise await self._not_kept(machine, ioctl, error) from error

    async def _not_kept(self, machine: Machine, ioctl: str, error: KvmError) -> KvmError:
        await self.discard(machine)
        return KvmError(error.errno, ioctl, f"virtual machine {machine.id} could not be kept; nothing has changed")

    def make(
        self,
        vm_id: str,
        *,
        vcpus: int = 0,
        variant: str,
        engine: str,
        mode: str,
        irqchip: bool,
        clock: str = "loop",
        switches: Mapping[str, Any] | None,
        seed: int,
    ) -> Machine:
        """Make a machine without vCPUs that is not known here yet. Errors as ``create``, for ``vcpus`` to come."""
        self._check_create(vm_id, vcpus)
        find_variant(variant)
        of_device = engine_factory(engine, mode).of_device
        if self.journal is not None:
            self.journal.check(CREATE)
        machine = (_device_machine() if of_device else Machine)(
            vm_id,
            log=self.log,
            system=self.system,
            variant=variant,
            engine=engine,
            mode=mode,
            irqchip=irqchip,
            clock=clock,
            switches=_switches(switches or {}),
            seed=seed,
            budget=self.memory,
            time_source=self.time_source,
        )
        machine.admit_run, machine.admit_vcpu = self._admit_run, partial(self._admit_vcpu, machine)
        if self.journal is not None and not of_device:
            self.journal.attach(machine)
        return machine

    async def destroy(self, vm_id: str) -> None:
        """Destroy one machine: to the end, whoever has asked for it and is gone meanwhile.

        ENODEV: there is none of that name; ENOSPC, EROFS: its record cannot be removed, and nothing has changed.
        """
        machine = self.get(vm_id)
        leaving = self._leaving.get(machine)
        if leaving is None:
            leaving = self._leaving[machine] = asyncio.create_task(self._destroy(machine))
            leaving.add_done_callback(lambda done: self._left(machine, done))
        await asyncio.shield(leaving)

    async def _destroy(self, machine: Machine) -> None:
        if machine.journal is not None:
            await machine.journal.forget(machine)  # nothing is removed before its record is gone
        await machine.destroy()
        self._remove(machine)

    def _left(self, machine: Machine, done: asyncio.Task[None]) -> None:
        del self._leaving[machine]
        if not done.cancelled():
            done.exception()  # told to those who still wait, if anybody does

    async def discard(self, machine: Machine) -> None:
        """Take back a machine that nobody was told of, to the end even if the caller is cancelled."""
        await to_the_end(self._discard(machine))

    async def _discard(self, machine: Machine) -> None:
        await machine.destroy()
        self._remove(machine)
        if machine.journal is not None:
            machine.journal.drop(machine)

    def _remove(self, machine: Machine) -> None:
        if self.machines.get(machine.id) is machine:
            del self.machines[machine.id]
            self.log.emit(machine.id, Tracepoint.KVM_DESTROY_VM, None, {})

    async def reset(self) -> None:
        """Destroy everything."""
        for vm_id in tuple(self.machines):
            await self.destroy(vm_id)

    def describe(self) -> Iterator[dict[str, Any]]:
        """The shapes of all machines, each made when it is asked for."""
        return (machine.shape() for machine in tuple(self.machines.values()))

    @property
    def parked_runs(self) -> int:
        """KVM_RUN calls of clients that are under way now."""
        return sum(len(machine.runs) for machine in self.machines.values())

    def _admit_run(self) -> None:
        if self.parked_runs >= self.limits.parked_runs:
            detail = f"{self.limits.parked_runs} runs are parked, which is the limit (parked_runs)"
            raise KvmError(errno.EAGAIN, "KVM_RUN", detail)

    def _admit_vcpu(self, machine: Machine) -> None:
        """EINVAL, as KVM answers, if the VM, or all of them, would have more vCPUs than a limit allows."""
        limit = self.limits.vcpus_per_vm
        if len(machine.vm.vcpus) >= limit:
            raise KvmError(errno.EINVAL, "KVM_CREATE_VCPU", f"a VM has at most {limit} vcpus here (vcpus_per_vm)")
        self._admit_vcpus(1, "KVM_CREATE_VCPU")

    def _admit_vcpus(self, number: int, ioctl: str) -> None:
        there = sum(len(machine.vm.vcpus) for machine in self.machines.values())
        if there + number > self.limits.vcpus:
            detail = (
                f"all virtual machines together have at most {self.limits.vcpus} vcpus here (vcpus), and {there} exist"
            )
            raise KvmError(errno.EINVAL, ioctl, detail, field="vcpus")

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
        self._admit_vcpus(vcpus, CREATE)


def _none(name: str, argument: int) -> None:
    if argument:
        raise KvmError(errno.EINVAL, name, "its argument is not 0")


def _device_machine() -> type[Machine]:
    from kickstand.runtime.device import DeviceMachine  # noqa: PLC0415  /dev/kvm is reached for only when it is asked for

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
