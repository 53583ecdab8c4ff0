"""/dev/kvm for a program: what each descriptor is, and what each ioctl becomes.

An ioctl is found in the runtime's table and begun at once; most are answered before the next is received. Those that
concern the program itself (descriptors, memory, signals, KVM_RUN) are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
from collections.abc import Callable
from typing import Any, ClassVar

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.uapi import KVM_USERSPACE_MEMORY_REGION, PAGE_SIZE, Cap, Fd, ioctl_by_request
from kickstand.exec.device import sync_regs
from kickstand.exec.device.answers import Answers, errno_of
from kickstand.exec.device.fds.descriptors import Descriptor, Descriptors
from kickstand.exec.device.fds.eventfds import IOEVENTFD
from kickstand.exec.device.fds.irqfds import IRQFD
from kickstand.exec.device.objects import AddressSpace, ProgramVcpu, ProgramVm
from kickstand.exec.device.run_page import MappedPage, mapping_size
from kickstand.exec.device.running import Running
from kickstand.exec.device.signals import Signals
from kickstand.exec.device.spaces import CallersMemory, Spaces
from kickstand.exec.host.notify import Listener, Notification
from kickstand.exec.host.tsc import HostTsc
from kickstand.exec.options import Options
from kickstand.exec.protection import Protection
from kickstand.exec.summary import Summary
from kickstand.exec.tracing import TraceFile, VmTrace
from kickstand.runtime.calls.ioctl import Declaration
from kickstand.runtime.driver.tasks import start
from kickstand.runtime.registry import Registry
from kickstand.runtime.table import find

MASK_SIZE = 8  # bytes of a signal set
IOEVENTFD_NR = 0x79
# What programs have and HTTP clients have not: descriptors of their own.
OWN_CAPABILITIES = {
    int(Cap.BINARY_STATS_FD): 1,
    int(Cap.SYNC_REGS): sync_regs.FIELDS,
    int(Cap.IRQFD): 1,
    int(Cap.IRQFD_RESAMPLE): 1,
    int(Cap.IOEVENTFD): 1,
    122: 1,
}  # 122: KVM_CAP_IOEVENTFD_ANY_LENGTH


class Kvm:
    """The descriptors of one program and of everything that it starts."""

    def __init__(self, listener: Listener, registry: Registry, options: Options, summary: Summary) -> None:
        self.registry = registry
        with contextlib.suppress(OSError):  # memory that is written and executed is not allowed everywhere
            registry.time_source = HostTsc()
        self.options = options
        self.summary = summary
        self._listener = listener
        self._descriptors = Descriptors()
        self._objects: dict[Descriptor, ProgramVm | ProgramVcpu | None] = {}
        self._spaces = Spaces()
        self._signals = Signals()
        self._answers = Answers(listener, self._signals)
        self._running = Running(listener, self._signals, options, summary)
        self._system: Descriptor | None = None
        self._trace = None if options.trace is None else TraceFile(options.trace)
        self._ending: set[asyncio.Future[None]] = set()
        asyncio.get_running_loop().add_reader(self._descriptors.inotify, self._descriptors.closed)

    @property
    def in_use(self) -> bool:
        """Somebody holds a VM."""
        self._descriptors.closed()
        return any(space.vms for space in self._spaces)

    @property
    def waited_for(self) -> bool:
        """A call waits for a guest, or for another call."""
        return bool(self._signals)

    def signals(self) -> None:
        """A thread is about to send a signal."""
        self._signals.sent()

    async def close(self) -> None:
        """End all VMs."""
        asyncio.get_running_loop().remove_reader(self._descriptors.inotify)
        self._signals.close()
        for space in self._spaces:
            for vm in tuple(space.vms):
                vm.abandon()
        while self._ending:
            await asyncio.wait(tuple(self._ending))
        self._descriptors.close()
        if self._trace is not None:
            self._trace.close()

    def discards(self, call: Notification) -> None:
        """``MADV_DONTNEED`` makes private memory zero; where it is a file by now, that has to be done here."""
        space = self._spaces.seen(call.tid)
        if space is not None:
            start, size = call.args[:2]
            space.memory.discard(start, start + -(-size // PAGE_SIZE) * PAGE_SIZE)

    def refuses_mapping(self, call: Notification) -> bool:
        """A dirty ring is mapped shared and not to be executed (``kvm_vcpu_mmap``)."""
        descriptor = self._descriptors.find(call.tid, call.args[4] & 0xFFFFFFFF)
        target = None if descriptor is None else self._objects.get(descriptor)
        if not isinstance(target, ProgramVcpu) or target.page.ring is None:
            return False
        return bool(call.args[2] & mmap.PROT_EXEC) or not call.args[3] & mmap.MAP_SHARED

    # -- descriptors ---------------------------------------------------------------------------------------

    def opened(self, call: Notification, *, cloexec: bool) -> None:
        """Give a descriptor of /dev/kvm."""
        if self._system is None:
            self._system = self._descriptors.make(Fd.SYSTEM, "kvm")
            self._objects[self._system] = None
        self._give(call, self._system, cloexec=cloexec)

    def _give(self, call: Notification, descriptor: Descriptor, *, cloexec: bool) -> bool:
        try:
            opened = descriptor.opened()
        except OSError as error:
            self._listener.answer(call, -1, error.errno or errno.EMFILE)
            return False
        try:
            self._listener.give(call, opened, cloexec=cloexec, answer=True)
        except OSError as error:
            self._listener.answer(call, -1, error.errno or errno.EMFILE)
            return False
        finally:
            os.close(opened)
        return True

    # -- ioctls --------------------------------------------------------------------------------------------

    def ioctl(self, call: Notification) -> None:
        """Answer it, or let it go on if its descriptor is not ours."""
        number, request = call.args[0] & 0xFFFFFFFF, call.args[1] & 0xFFFFFFFF
        descriptor = self._descriptors.find(call.tid, number)
        if descriptor is None:
            self._listener.go_on(call)
            return
        known = ioctl_by_request(descriptor.kind, request)
        name = hex(request) if known is None else known.name
        try:
            own = self._OWN.get(name)
            if own is not None:
                own(self, call, descriptor)
            else:
                self._perform(call, descriptor, self._find(descriptor.kind, request, name))
        except KvmError as error:
            self._listener.answer(call, -1, error.errno)
        except OSError as error:
            self._listener.answer(call, -1, error.errno or errno.EIO)
        finally:
            self.summary.ioctl(name)

    def _find(self, kind: Fd, request: int, name: str) -> Declaration:
        try:
            return find(kind, request)
        except KvmError:
            self.summary.unknown(kind.value, name)
            raise

    def _perform(self, call: Notification, descriptor: Descriptor, declared: Declaration) -> None:
        target = self._objects[descriptor]
        if isinstance(target, ProgramVcpu):
            process = self._spaces.own_process(call.tid, target.vm)
            core = declared.call(target.vm.machine, call.args[2], process, target.id)
        elif target is not None:
            core = declared.call(target.machine, call.args[2], self._spaces.own_process(call.tid, target))
        else:
            core = declared.call(self.registry, call.args[2], CallersMemory(self._spaces, call.tid))
        self._answers.when_done(call, start(core, declared.name))

    # -- those that concern the program itself -------------------------------------------------------------

    def _create_vm(self, call: Notification, _descriptor: Descriptor) -> None:
        if call.args[2]:
            raise KvmError(errno.EINVAL, "KVM_CREATE_VM", f"there is no VM type {call.args[2]}", field="type")
        space = self._spaces.of(call.tid)
        options = self.options
        created = start(self.registry.create(variant=options.variant, engine="x86", mode=options.mode))
        if created.done():
            self._created_vm(call, space, created)
        else:
            created.add_done_callback(lambda done: self._created_vm(call, space, done))

    def _created_vm(self, call: Notification, space: AddressSpace, created: asyncio.Future[Any]) -> None:
        error = created.exception()
        if error is not None:
            self._listener.answer(call, -1, errno_of(error))
            return
        machine = created.result()
        trace = VmTrace(machine, space.memory) if self._trace is not None else None
        vm = ProgramVm(machine, space, Protection(machine, self.options.protect, self.summary), self._end_vm, trace)
        space.vms.add(vm)
        try:
            descriptor = self._descriptors.make(Fd.VM, "kvm-vm")
        except OSError as failed:
            self._end_vm(vm)
            self._listener.answer(call, -1, failed.errno or errno.EMFILE)
            return
        self._hand_out(call, descriptor, vm)

    def _hand_out(self, call: Notification, descriptor: Descriptor, stands_for: ProgramVm | ProgramVcpu) -> None:
        """It is the program's from now on; once nobody has it any more, nothing of it stays here."""

        def closed() -> None:
            del self._objects[descriptor]
            stands_for.closed()

        descriptor.on_close = closed
        self._objects[descriptor] = stands_for
        if not self._give(call, descriptor, cloexec=True):
            self._descriptors.forget(descriptor)
            closed()

    def _end_vm(self, vm: ProgramVm) -> None:
        ending = start(self._destroy(vm))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _destroy(self, vm: ProgramVm) -> None:
        with contextlib.suppress(KvmError):  # a client was faster
            await self.registry.destroy(vm.machine.id)
        if vm.trace is not None and self._trace is not None:
            self._trace.add(vm.trace)
        vm.space.vms.discard(vm)
        vm.space.collect()
        self._spaces.sweep()

    def _create_vcpu(self, call: Notification, descriptor: Descriptor) -> None:
        vm = self._objects[descriptor]
        assert isinstance(vm, ProgramVm)
        self._spaces.own_process(call.tid, vm)
        vcpu_id = call.args[2]
        made = start(vm.machine.create_vcpu(vcpu_id))
        if made.done():
            self._created_vcpu(call, vm, vcpu_id, made)
        else:
            made.add_done_callback(lambda done: self._created_vcpu(call, vm, vcpu_id, done))

    def _created_vcpu(self, call: Notification, vm: ProgramVm, vcpu_id: int, made: asyncio.Future[Any]) -> None:
        error = made.exception()
        if error is not None:
            self._listener.answer(call, -1, errno_of(error))
            return
        try:
            size = mapping_size(vm.machine.vm.arch.dirty_ring_entries)
            descriptor = self._descriptors.make(Fd.VCPU, f"kvm-vcpu:{vcpu_id}", size)
        except OSError as failed:
            self._listener.answer(call, -1, failed.errno or errno.EMFILE)
            return
        vcpu = ProgramVcpu(vm, vcpu_id, MappedPage(descriptor.descriptor, size))
        vcpu.page.save(vcpu.core.guest, irqchip=vm.machine.vm.irqchip)
        self._hand_out(call, descriptor, vcpu)

    def _set_memory(self, call: Notification, descriptor: Descriptor) -> None:
        vm = self._objects[descriptor]
        assert isinstance(vm, ProgramVm)
        process = self._spaces.own_process(call.tid, vm)
        fields = KVM_USERSPACE_MEMORY_REGION.unpack(process.read(call.args[2], KVM_USERSPACE_MEMORY_REGION.size))
        changed = start(self._change_memory(vm, call.tid, Region(**fields)))
        self._answers.when_done(call, changed)

    async def _change_memory(self, vm: ProgramVm, tid: int, region: Region) -> int:
        if vm.trace is not None:
            vm.trace.slot(region)
        await vm.protection.change(tid, region)
        vm.noted(region)
        return 0

    def _check_extension(self, call: Notification, descriptor: Descriptor) -> None:
        here = OWN_CAPABILITIES.get(call.args[2])
        if here is None:
            declared = find(descriptor.kind, call.args[1])
            self._perform(call, descriptor, declared)
        else:
            self._listener.answer(call, here)

    def _eventfd(self, call: Notification, descriptor: Descriptor) -> None:
        vm = self._objects[descriptor]
        assert isinstance(vm, ProgramVm)
        process = self._spaces.own_process(call.tid, vm)
        if call.args[1] & 0xFF == IOEVENTFD_NR:
            vm.eventfds.io_event(process.tgid, IOEVENTFD.unpack(process.read(call.args[2], IOEVENTFD.size)))
        else:
            vm.irqfds.ioctl(process.tgid, IRQFD.unpack(process.read(call.args[2], IRQFD.size)))
        self._listener.answer(call)

    def _get_stats(self, call: Notification, descriptor: Descriptor) -> None:
        target = self._objects[descriptor]
        assert target is not None
        self._spaces.own_process(call.tid, target.vm if isinstance(target, ProgramVcpu) else target)
        opened = target.stats.opened()
        try:
            self._listener.give(call, opened, cloexec=True, answer=True)
        finally:
            os.close(opened)

    def _set_signal_mask(self, call: Notification, descriptor: Descriptor) -> None:
        vcpu = self._objects[descriptor]
        assert isinstance(vcpu, ProgramVcpu)
        if not call.args[2]:
            vcpu.mask = None
        else:
            process = self._spaces.own_process(call.tid, vcpu.vm)
            if int.from_bytes(process.read(call.args[2], 4), "little") != MASK_SIZE:
                raise KvmError(errno.EINVAL, "KVM_SET_SIGNAL_MASK", f"a signal set has {MASK_SIZE} bytes", field="len")
            vcpu.mask = int.from_bytes(process.read(call.args[2] + 4, MASK_SIZE), "little")
        self._listener.answer(call)

    def _run(self, call: Notification, descriptor: Descriptor) -> None:
        vcpu = self._objects[descriptor]
        assert isinstance(vcpu, ProgramVcpu)
        self._spaces.own_process(call.tid, vcpu.vm)
        if call.args[2]:
            raise KvmError(errno.EINVAL, "KVM_RUN", "its argument is not 0")
        self._running.run(call, vcpu)

    _OWN: ClassVar[dict[str, Callable[[Kvm, Notification, Descriptor], None]]] = {
        "KVM_CREATE_VM": _create_vm,
        "KVM_CREATE_VCPU": _create_vcpu,
        "KVM_SET_USER_MEMORY_REGION": _set_memory,
        "KVM_SET_USER_MEMORY_REGION2": _set_memory,
        "KVM_SET_SIGNAL_MASK": _set_signal_mask,
        "KVM_GET_STATS_FD": _get_stats,
        "KVM_CHECK_EXTENSION": _check_extension,
        "KVM_IOEVENTFD": _eventfd,
        "KVM_IRQFD": _eventfd,
        "KVM_RUN": _run,
    }
