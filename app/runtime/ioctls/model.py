"""ioctls about what is model-specific: CPUID tables and MSRs, of the system and of a vCPU.

Their structures end in arrays whose length the caller gives first; one that is too short is E2BIG.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from functools import partial
from itertools import groupby, takewhile
from struct import Struct
from typing import TypeVar

from kickstand.core.arch.cpu.cpuid import MAX_ENTRIES, SET_CPUID2, SUPPORTED, Entry
from kickstand.core.arch.cpu.mce import SUPPORTED as SUPPORTED_MCE
from kickstand.core.arch.cpu.mce import MachineCheck
from kickstand.core.arch.cpu.msrs import FEATURE_LIST, FEATURE_VALUES, INDEX_LIST
from kickstand.core.errors import KvmError
from kickstand.core.guest import Modelled, is_modelled
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.uapi import Cap, Fd
from kickstand.core.wiring import machine_checks
from kickstand.core.wiring.in_kernel import APIC_MSRS
from kickstand.runtime.calls.arguments import Argument
from kickstand.runtime.calls.ioctl import Ioctls, ioctl
from kickstand.runtime.ioctls.settings import VmSettings
from kickstand.runtime.vmm.process import Process

T = TypeVar("T")
MAX_MSRS = 256  # MAX_IO_MSRS: what one call takes, less one
_COUNT, _HEAD = Struct("<I"), Struct("<2I")
_ENTRY, _MSR = Struct("<7I12x"), Struct("<2IQ")
ENTRY_FIELDS = tuple(field.name for field in fields(Entry))


def _length(argument: Argument) -> int:
    (length,) = _COUNT.unpack(argument.memory.read(argument.number, _COUNT.size))
    return int(length)


def _room(argument: Argument) -> tuple[int]:
    return (_length(argument),)


def _fits(ioctl: str, table: Sequence[T], room: int | None) -> Sequence[T]:
    if room is not None and room < len(table):
        raise KvmError(errno.E2BIG, ioctl, f"there are {len(table)} entries, and room for {room}", field="nent")
    return table


def _fill_cpuid(table: Sequence[Entry], argument: Argument) -> None:
    data = b"".join(_ENTRY.pack(*astuple(entry)) for entry in table)
    argument.memory.write(argument.number, _HEAD.pack(len(table), 0) + data)


def _cpuid(argument: Argument) -> tuple[list[Entry]]:
    length = _length(argument)
    if length > MAX_ENTRIES:
        raise KvmError(errno.E2BIG, SET_CPUID2, f"{length} entries are more than {MAX_ENTRIES}", field="nent")
    data = argument.memory.read(argument.number + _HEAD.size, length * _ENTRY.size)
    return ([Entry(*values) for values in _ENTRY.iter_unpack(data)],)


def _fill_indices(indices: Sequence[int], argument: Argument) -> None:
    """The number is told also to those who have not enough room."""
    room = _length(argument)
    argument.memory.write(argument.number, _COUNT.pack(len(indices)))
    _fits("KVM_GET_MSR_INDEX_LIST", indices, room)
    argument.memory.write(argument.number + _COUNT.size, b"".join(map(_COUNT.pack, indices)))


def _msrs(argument: Argument) -> list[tuple[int, int]]:
    length = _length(argument)
    if length >= MAX_MSRS:
        raise KvmError(errno.E2BIG, "KVM_GET_MSRS", f"{length} are not below {MAX_MSRS}", field="nmsrs")
    data = argument.memory.read(argument.number + _HEAD.size, length * _MSR.size)
    return [(index, value) for index, _, value in _MSR.iter_unpack(data)]


def _indices(argument: Argument) -> tuple[list[int]]:
    return ([index for index, _ in _msrs(argument)],)


def _fill_msrs(values: Sequence[tuple[int, int]], argument: Argument) -> None:
    for at, (index, value) in enumerate(values):
        argument.memory.write(argument.number + _HEAD.size + at * _MSR.size, _MSR.pack(index, 0, value))


class SystemModel(Ioctls):
    """What any vCPU here can be."""

    @ioctl("KVM_GET_SUPPORTED_CPUID", takes=_room, fills=_fill_cpuid)
    async def get_supported_cpuid(self, room: int | None = None) -> Sequence[Entry]:
        """KVM_GET_SUPPORTED_CPUID. E2BIG: there are more than ``room``."""
        return _fits("KVM_GET_SUPPORTED_CPUID", SUPPORTED, room)

    @ioctl("KVM_GET_EMULATED_CPUID", takes=_room, fills=_fill_cpuid)
    async def get_emulated_cpuid(self, _room: int | None = None) -> Sequence[Entry]:
        """KVM_GET_EMULATED_CPUID: what is slow although it is offered; nothing is."""
        return ()

    @ioctl("KVM_GET_MSR_INDEX_LIST", takes=lambda _: (), fills=_fill_indices)
    async def get_msr_index_list(self) -> Sequence[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs to be saved."""
        return INDEX_LIST

    @ioctl("KVM_GET_MSR_FEATURE_INDEX_LIST", takes=lambda _: (), fills=_fill_indices)
    async def get_msr_feature_index_list(self) -> Sequence[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that tell of the system."""
        return FEATURE_LIST

    @ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", gives=lambda supported: {"mcg_cap": supported})
    async def get_mce_cap_supported(self) -> int:
        """KVM_X86_GET_MCE_CAP_SUPPORTED: what KVM_X86_SETUP_MCE takes besides the number of banks."""
        return SUPPORTED_MCE

    @ioctl("KVM_GET_MSRS", fd=Fd.SYSTEM, takes=_indices, gives=len, fills=_fill_msrs)
    async def get_feature_msrs(self, indices: Iterable[int]) -> Sequence[tuple[int, int]]:
        """KVM_GET_MSRS of the system: (index, value) up to the first that is no feature MSR."""
        return [(index, FEATURE_VALUES[index]) for index in takewhile(FEATURE_VALUES.__contains__, indices)]


def _machine_check(given: Argument) -> tuple[MachineCheck]:
    return (MachineCheck(**given.fields),)


class CpuModel(VmSettings, Process):
    """What one vCPU is. ENOTTY: its engine has neither CPUID nor MSRs."""

    async def _of(self, vcpu_id: int, body: Callable[[], T]) -> T:
        return await self.call(self.vcpu(vcpu_id).with_mutex(body, self.thread().tid))

    def _modelled(self, vcpu_id: int, ioctl: str) -> Modelled:
        self._check_alive(ioctl)
        guest = self.vcpu(vcpu_id).guest
        if not is_modelled(guest):
            raise KvmError(errno.ENOTTY, ioctl, "this engine has no CPUID and no MSRs")
        return guest

    @ioctl("KVM_GET_CPUID2", takes=_room, fills=_fill_cpuid)
    async def get_cpuid2(self, vcpu_id: int, room: int | None = None) -> Sequence[Entry]:
        """KVM_GET_CPUID2. E2BIG: there are more than ``room``."""
        guest = self._modelled(vcpu_id, "KVM_GET_CPUID2")
        return _fits("KVM_GET_CPUID2", list(guest.cpuid), room)

    @ioctl(SET_CPUID2, durable=True, recorded=True, takes=_cpuid)
    async def set_cpuid2(self, vcpu_id: int, entries: Sequence[Entry]) -> None:
        """KVM_SET_CPUID2; waits for KVM_RUN to end. E2BIG, EINVAL: as ``cpuid.check_entries``.

        EINVAL: the vCPU has been in guest mode, and this is not what it was there with.
        """
        guest, vcpu = self._modelled(vcpu_id, SET_CPUID2), self.vcpu(vcpu_id)

        def change() -> None:
            if not vcpu.watched.counters.entries:
                guest.set_cpuid(entries)
            elif list(entries) != list(guest.cpuid):
                raise KvmError(errno.EINVAL, SET_CPUID2, f"vcpu {vcpu_id} has been in guest mode", field="entries")

        await self._of(vcpu_id, change)

    @ioctl("KVM_GET_MSRS", fd=Fd.VCPU, takes=_indices, gives=len, fills=_fill_msrs)
    async def get_msrs(self, vcpu_id: int, indices: Sequence[int]) -> Sequence[tuple[int, int]]:
        """KVM_GET_MSRS: (index, value) in order, up to the first that there is not; waits for KVM_RUN to end."""
        guest, vcpu = self._modelled(vcpu_id, "KVM_GET_MSRS"), self.vcpu(vcpu_id)
        values: list[int] = []
        for of_apic, some in _runs(indices, vcpu):
            if of_apic:
                found = await self.call(vcpu.read_apic_msrs(some))
            else:
                found = await self._of(vcpu_id, partial(guest.read_msrs, some))
            values += found
            if len(found) < len(some):
                break
        return list(zip(indices, values, strict=False))

    @ioctl("KVM_SET_MSRS", durable=True, recorded=True, takes=lambda a: (_msrs(a),), gives=int)
    async def set_msrs(self, vcpu_id: int, msrs: Sequence[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many (index, value) were taken, in order; waits for KVM_RUN to end."""
        guest, vcpu = self._modelled(vcpu_id, "KVM_SET_MSRS"), self.vcpu(vcpu_id)
        values, done = dict(enumerate(value for _, value in msrs)), 0
        for of_apic, some in _runs([index for index, _ in msrs], vcpu):
            entries = [(index, values[done + at]) for at, index in enumerate(some)]
            if of_apic:
                taken = await self.call(vcpu.write_apic_msrs(entries))
            else:
                taken = await self._of(vcpu_id, partial(guest.write_msrs, entries))
            done += taken
            if taken < len(entries):
                break
        return done

    @ioctl(
        "KVM_ENABLE_CAP",
        fd=Fd.VCPU,
        durable=True,
        recorded=True,
        takes=lambda enabled: (enabled["cap"], enabled["flags"], enabled["args"]),
    )
    async def enable_vcpu_cap(self, vcpu_id: int, capability: int, flags: int, args: Sequence[int]) -> None:
        """KVM_ENABLE_CAP of a vCPU. EINVAL: flags, or a capability that no vCPU has."""
        guest = self._modelled(vcpu_id, "KVM_ENABLE_CAP")
        if flags or capability != Cap.ENFORCE_PV_FEATURE_CPUID:
            raise KvmError(errno.EINVAL, "KVM_ENABLE_CAP", f"capability {capability} cannot be enabled", field="cap")
        await self._of(vcpu_id, lambda: guest.enforce_pv(enforced=bool(args[0])))

    @ioctl("KVM_X86_SETUP_MCE", durable=True, recorded=True, takes=lambda given: (given["mcg_cap"],))
    async def setup_mce(self, vcpu_id: int, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE: how many banks there are, and what they can. EINVAL: as ``mce.set_up``."""
        guest, vcpu = self._modelled(vcpu_id, "KVM_X86_SETUP_MCE"), self.vcpu(vcpu_id)
        await self.call(machine_checks.set_up(vcpu, guest, mcg_cap, self.thread().tid))

    @ioctl("KVM_X86_SET_MCE", durable=True, recorded=True, takes=_machine_check)
    async def set_mce(self, vcpu_id: int, error: MachineCheck) -> None:
        """KVM_X86_SET_MCE: report a machine check to the guest. EINVAL: as ``mce.report``."""
        guest, vcpu = self._modelled(vcpu_id, "KVM_X86_SET_MCE"), self.vcpu(vcpu_id)
        await self.call(machine_checks.report(vcpu, guest, error, self.thread().tid))


def _runs(indices: Sequence[int], vcpu: AnyVcpu) -> Iterator[tuple[bool, list[int]]]:
    """Indices in order, cut where they change between the CPU's own and those of an APIC in the kernel."""
    for of_apic, some in groupby(indices, lambda index: vcpu.apic is not None and index in APIC_MSRS):
        yield of_apic, list(some)


def table_of(entries: Iterable[Entry]) -> list[dict[str, str]]:
    """A table by the names of its fields."""
    return [dict(zip(ENTRY_FIELDS, map(hex, astuple(entry)), strict=True)) for entry in entries]
