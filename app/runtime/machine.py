"""One virtual machine on the event loop: each method is an ioctl, or a state that observers read.

A machine joins the core's ``Vm`` with host memory, a guest engine, the clock, and the threads that call
KVM_RUN. Nothing here decides protocol: it performs coroutines of the core and shapes their answers.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any, TypeVar

from app.core.atomics import Effect, Task
from app.core.errors import KvmError
from app.core.memslots import Region
from app.core.trace import USER, Tracer, VcpuState
from app.core.uapi import Fd, MpState, ioctl_by_request, unknown_errno
from app.core.variants import variant as find_variant
from app.core.vcpu import Vcpu
from app.core.vm import DEFAULT_SWITCHES, Switches, System, Vm
from app.guests.engines import engine_factory
from app.guests.host_memory import HostMemory
from app.guests.script import ScriptGuest, compile_program
from app.runtime import views
from app.runtime.durable import Journal, durable, inside
from app.runtime.events import EventLog
from app.runtime.history import History, RecordedMemory, keeps_history
from app.runtime.runs import Run
from app.runtime.tasks import begin, go_on, perform, perform_now
from app.runtime.transactions import Transactions
from app.runtime.userspace import Flag, VmmThread

T = TypeVar("T")
DEFAULT_RUN_MS = 30_000


@durable(
    "create_vcpu", "create_irqchip", "irq_line", "signal_msi", "kick", "resume", "set_user_memory_region",
    "memory_transaction", "get_dirty_log", "clear_dirty_log", "set_regs", "set_sregs", "set_mp_state", "interrupt",
    "nmi", "set_program", "stop_thread",
)  # fmt: skip
@keeps_history(
    "create_vcpu", "create_irqchip", "irq_line", "signal_msi", "kick", "resume", "set_user_memory_region",
    "memory_transaction", "get_dirty_log", "clear_dirty_log", "start_run", "get_regs", "set_regs", "get_sregs",
    "set_sregs", "get_mp_state", "set_mp_state", "interrupt", "nmi", "signal", "set_cpuid_supported", "set_run_flag",
    "set_program", "start_thread", "stop_thread",
)  # fmt: skip
class Machine:
    """A VM and its VMM's half. ``log`` receives its events; ``seed`` decides its choices."""

    def __init__(
        self,
        vm_id: str,
        *,
        log: EventLog,
        system: System,
        variant: str = "sticky",
        engine: str = "script",
        mode: str = "precise",
        irqchip: bool = False,
        switches: Switches = DEFAULT_SWITCHES,
        seed: int = 0,
        memory_limit: int = 1 << 40,
    ) -> None:
        self.id = vm_id
        self.variant = variant
        self.engine = engine
        self.mode = mode
        self.seed = seed
        self.log = log
        self.trace: Tracer = log.tracer(vm_id)
        self.history = History()
        self.journal: Journal | None = None
        self.unsettled = 0  # windows that are opening, or belong to a transaction: nobody was told of them
        self.transactions = Transactions(self)
        self.memory: HostMemory = RecordedMemory(memory_limit, self.history)
        self.threads: dict[int, VmmThread] = {}
        self.runs: set[Run] = set()
        self.kick_id = 0
        self.drained_ns = 0  # all kicks together
        self.proceed = Flag(is_set=True)  # the resume flag of well-behaved userspace
        self._calls: set[asyncio.Task[Any]] = set()
        self._dead = False
        self._tids = count(1)
        self._random = random.Random(seed)
        self.vm = self._make_vm(system, switches, irqchip=irqchip)

    def _make_vm(self, system: System, switches: Switches, *, irqchip: bool) -> Vm:
        factory = engine_factory(self.engine, self.mode)
        return Vm(
            self.id,
            find_variant(self.variant),
            lambda vcpu: factory.make(vcpu, self.memory),
            system=system,
            irqchip=irqchip,
            switches=switches,
            flush_guests=factory.caches_translations,
            trace=self.trace,
        )

    # -- plumbing ----------------------------------------------------------------------------------------

    def thread(self, role: str = "vmm") -> Task:
        """A host thread of this VM's VMM, for one call."""
        return Task(f"{self.id}/{role}#{next(self._tids)}", f"{self.id}/vmm")

    def choose(self, alternatives: int) -> int:
        """Decide a choice of the guest from the VM's seed."""
        return self._random.randrange(alternatives)

    async def call(self, core: Coroutine[Effect, Any, T]) -> T:
        """Perform one ioctl in the calling task. EIO if the VM is destroyed meanwhile.

        Cancellation gives back everything the ioctl holds or waits for.
        """
        if self._dead:
            core.close()
            raise self._gone("ioctl")
        try:
            begun = begin(core, self.choose)
        except StopIteration as stop:  # as most do, without ever waiting
            result: T = stop.value
            return result
        current = asyncio.current_task()
        assert current is not None
        self._calls.add(current)
        try:
            return await go_on(core, begun, self.choose)
        except asyncio.CancelledError:
            if not self._dead:
                raise
            current.uncancel()
            raise self._gone("ioctl") from None
        finally:
            self._calls.discard(current)

    def _gone(self, ioctl: str) -> KvmError:
        return KvmError(errno.EIO, ioctl, f"virtual machine {self.id} is destroyed")

    def admit(self, ioctl: str) -> None:
        """Refuse a call while what it changes could not be kept. ENOSPC, EROFS; nothing has changed then."""
        if self.journal is not None and not inside.get():
            self.journal.check(ioctl)

    async def committed(self, vcpu_id: int | None = None) -> None:
        """Return once what was changed so far is kept, if anything is."""
        if self.journal is not None and not inside.get():
            await self.journal.committed(self, vcpu_id)

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """Return one vCPU. ENOENT if there is none."""
        found = self.vm.vcpus.get(vcpu_id)
        if found is None:
            raise KvmError(errno.ENOENT, "vcpu", f"virtual machine {self.id} has no vcpu {vcpu_id}", field="vcpu")
        return found

    # -- the VM's life -----------------------------------------------------------------------------------

    async def create_vcpu(self, vcpu_id: int, program: object = None) -> dict[str, Any]:
        """KVM_CREATE_VCPU, with a script guest's program if given; returns the vCPU's shape."""
        steps = None if program is None else self._compile(program)
        vcpu = await self.call(self.vm.create_vcpu(vcpu_id, self.thread()))
        if steps is not None:
            self._script(vcpu).load_program(steps, program)
        self.log.emit(self.id, "kvm_create_vcpu", vcpu_id, {"mp_state": vcpu.arch.mp_state.name})
        return self.describe_vcpu(vcpu_id)

    async def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP."""
        await self.call(self.vm.create_irqchip())

    async def irq_line(self, irq: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        await self.call(self.vm.irq_line(irq, level))
        self._wake_threads()

    async def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI; true if a vCPU took it."""
        return await self.call(self.vm.signal_msi(address, data))

    async def destroy(self) -> None:
        """End the VM: parked runs answer EIO, waiting ioctls too, threads stop, memory is given back."""
        if self._dead:
            return
        core = self.vm.destroy()
        await perform(core, self.choose)
        self._dead = True
        waiting = [task for task in self._calls if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        for thread in self.threads.values():
            thread.kill()
        for run in tuple(self.runs):
            run.destroyed()
        ending: list[asyncio.Future[Any]] = [
            *(run.task for run in self.runs),
            *(thread.task for thread in self.threads.values()),
        ]
        if ending:
            await asyncio.wait(ending)
        for vcpu in self.vm.vcpus.values():
            vcpu.guest.close()

    # -- kick and resume ---------------------------------------------------------------------------------

    async def kick(self, timeout_ms: int | None = None) -> dict[str, Any]:
        """KVM_KICK_ALL_RUNNING_VCPUS.

        ETIMEDOUT after ``timeout_ms``, with the vCPUs that are still inside; the kick is taken back then.
        """
        self.proceed.clear()
        inside = [vcpu for vcpu in self.vm.vcpus.values() if vcpu.watched.state is not USER]
        was_open = self.vm.variant.holds
        started = time.monotonic_ns()
        if not was_open:
            self.kick_id += 1
        self.unsettled += 1
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                changed = await self.call(self.vm.kick_all_running_vcpus(self.thread("kicker")))
        except TimeoutError:
            raise self._kick_timed_out(inside, timeout_ms) from None
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
            "vcpus_stopped": len([vcpu for vcpu in inside if vcpu.watched.state is USER]),
            "holds": self.vm.variant.holds,
            "drain_ns": drain_ns,
            "seq": self.log.seq,
        }

    def _kick_timed_out(self, inside: Sequence[Vcpu], timeout_ms: int | None) -> KvmError:
        self._open_gate()
        still = [vcpu.id for vcpu in inside if vcpu.watched.state not in (VcpuState.USER, VcpuState.WAITING)]
        return KvmError(
            errno.ETIMEDOUT,
            "KVM_KICK_ALL_RUNNING_VCPUS",
            f"after {timeout_ms} ms vcpus {still} were still in KVM_RUN; the kick was taken back",
            vcpus=still,
        )

    async def resume(self) -> dict[str, Any]:
        """KVM_RESUME_ALL_KICKED_VCPUS; lets well-behaved userspace go on."""
        cleared = await self.call(self.vm.resume_all_kicked_vcpus(self.thread()))
        self._open_gate()
        return {"changed": bool(cleared), "cleared": cleared, "holds": self.vm.variant.holds, "seq": self.log.seq}

    def _open_gate(self) -> None:
        if not self.vm.variant.holds:
            self.proceed.set()

    # -- memory ------------------------------------------------------------------------------------------

    async def set_user_memory_region(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        await self.change_region(region)
        self.transactions.changed_beside(region.slot)

    async def change_region(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION, perhaps as one of a transaction."""
        await self.call(self.vm.set_user_memory_region(region, self.thread()))

    async def memory_transaction(
        self, regions: Sequence[Region], protect: str | None = None, timeout_ms: int | None = None
    ) -> dict[str, Any]:
        """Apply ``regions`` in order, all or none; what and errors as ``transactions.Transactions.perform``."""
        return await self.transactions.perform(regions, protect or self.vm.variant.protects_by, timeout_ms)

    async def get_dirty_log(self, slot: int) -> list[int]:
        """KVM_GET_DIRTY_LOG."""
        return list(await self.call(self.vm.get_dirty_log(slot, self.thread())))

    async def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bits: Sequence[int]) -> None:
        """KVM_CLEAR_DIRTY_LOG."""
        await self.call(self.vm.clear_dirty_log(slot, first_page, num_pages, bits, self.thread()))

    # -- vCPU ioctls -------------------------------------------------------------------------------------

    def start_run(
        self,
        vcpu_id: int,
        *,
        reply: bytes | None = None,
        immediate_exit: bool | None = None,
        timeout_ms: int | None = DEFAULT_RUN_MS,
        nowait: bool = False,
    ) -> Run:
        """Start KVM_RUN on a thread of its own; ``await run.result()`` gives the answer.

        ENOENT: no such vCPU; EBUSY with ``nowait``: another KVM_RUN is under way; EINVAL: a reply of another
        length than the access that waits takes (none waits while a KVM_RUN is inside).
        """
        if self._dead:
            raise self._gone("KVM_RUN")
        self.admit("KVM_RUN")
        vcpu = self.vcpu(vcpu_id)
        if nowait and vcpu.mutex.owner is not None:
            raise KvmError(errno.EBUSY, "KVM_RUN", f"vcpu {vcpu_id} is in an ioctl of another thread")
        self._check_reply(vcpu, reply)
        tid = f"{vcpu.tid}#{next(self._tids)}"
        return Run(self, vcpu, tid, views.page_writes(reply, immediate_exit), timeout_ms)

    def _check_reply(self, vcpu: Vcpu, reply: bytes | None) -> None:
        pending = vcpu.arch.pending
        expected = pending.reply_length if pending is not None else 0
        if reply is not None and len(reply) != expected:
            takes = f"the access that waits takes {expected} bytes" if expected else "no access waits for bytes"
            raise KvmError(errno.EINVAL, "KVM_RUN", f"{takes}; the reply has {len(reply)}", field="reply")

    async def run(self, vcpu_id: int, **options: Any) -> dict[str, Any]:
        """``start_run`` and its result in one; cancelled, it leaves as a departed client does."""
        return await self.start_run(vcpu_id, **options).result()

    async def get_regs(self, vcpu_id: int) -> dict[str, int]:
        """KVM_GET_REGS between two instructions: unlike the ioctl it waits for KVM_RUN to end only in mode fast."""
        return await self._look(vcpu_id, self.vcpu(vcpu_id).guest.registers)

    async def set_regs(self, vcpu_id: int, registers: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the named registers; waits for KVM_RUN to end."""
        guest = self.vcpu(vcpu_id).guest
        await self._locked(vcpu_id, lambda: guest.set_registers(registers))

    async def get_sregs(self, vcpu_id: int) -> dict[str, object]:
        """KVM_GET_SREGS, as ``get_regs``."""
        return await self._look(vcpu_id, self.vcpu(vcpu_id).guest.special_registers)

    async def _look(self, vcpu_id: int, read: Callable[[], T]) -> T:
        vcpu = self.vcpu(vcpu_id)
        if self.mode != "fast" or vcpu.mutex.owner is None:
            return read()
        return await self.call(vcpu.with_mutex(read, self.thread().tid))  # it runs on a thread of its own

    async def set_sregs(self, vcpu_id: int, changes: Mapping[str, object]) -> None:
        """KVM_SET_SREGS for the named registers; waits for KVM_RUN to end."""
        guest = self.vcpu(vcpu_id).guest
        await self._locked(vcpu_id, lambda: guest.set_special_registers(changes))

    async def _locked(self, vcpu_id: int, body: Callable[[], None]) -> None:
        await self.call(self.vcpu(vcpu_id).with_mutex(body, self.thread().tid))

    async def get_mp_state(self, vcpu_id: int) -> MpState:
        """KVM_GET_MP_STATE, without waiting for KVM_RUN to end."""
        return self.vcpu(vcpu_id).arch.mp_state

    async def set_mp_state(self, vcpu_id: int, mp_state: int) -> None:
        """KVM_SET_MP_STATE; waits for KVM_RUN to end. EINVAL for a number that is no state."""
        if mp_state not in MpState.__members__.values():
            raise KvmError(errno.EINVAL, "KVM_SET_MP_STATE", f"{mp_state} is no state", field="mp_state")
        await self.call(self.vcpu(vcpu_id).set_mp_state(MpState(mp_state), self.thread().tid))

    async def interrupt(self, vcpu_id: int, vector: int) -> None:
        """KVM_INTERRUPT; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).interrupt(vector, self.thread().tid))
        self._wake_threads()

    async def nmi(self, vcpu_id: int) -> None:
        """KVM_NMI; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).inject_nmi(self.thread().tid))
        self._wake_threads()

    async def set_cpuid_supported(self, vcpu_id: int) -> None:
        """KVM_SET_CPUID2 with what KVM_GET_SUPPORTED_CPUID lists; an emulated CPU has one table only.

        EINVAL once the vCPU has been in guest mode: what the kernel keeps by then is not what it lists.
        """
        if self.vcpu(vcpu_id).watched.counters.entries:
            raise KvmError(errno.EINVAL, "KVM_SET_CPUID2", f"vcpu {vcpu_id} has been in guest mode")

    def check_raw(self, fd: Fd, request: int) -> None:
        """Refuse (EOPNOTSUPP) an ioctl that the descriptor knows."""
        known = ioctl_by_request(fd, request)
        if known is not None:
            raise KvmError(errno.EOPNOTSUPP, known.name, "it is not issued raw on its own descriptor", field="request")

    async def raw_ioctl(self, fd: Fd, request: int, vcpu_id: int | None = None) -> int:
        """An ioctl with argument 0, on a descriptor that does not know it: what such a descriptor answers.

        EOPNOTSUPP: the descriptor knows it; it has a method of its own here.
        """
        self.check_raw(fd, request)
        if vcpu_id is not None:
            self.vcpu(vcpu_id)
        raise KvmError(unknown_errno(fd), hex(request), f"a {fd.value} descriptor does not know it", field="request")

    def signal(self, vcpu_id: int) -> None:
        """Send a signal to the vCPU's thread; without a KVM_RUN it stays pending for the next."""
        vcpu = self.vcpu(vcpu_id)
        self.admit("signal")
        perform_now(vcpu.send_signal())
        self._wake_threads()

    def set_run_flag(self, vcpu_id: int, flag: str, value: bool) -> None:
        """Write ``immediate_exit`` or ``request_interrupt_window`` of the shared page; it stays so."""
        page = self.vcpu(vcpu_id).run_page
        flags = {
            "immediate_exit": page.keep_immediate_exit,
            "request_interrupt_window": page.set_request_interrupt_window,
        }
        if flag not in flags:
            raise KvmError(errno.EINVAL, "kvm_run", f"{flag!r} is none of {', '.join(flags)}", field="flag")
        self.admit("kvm_run")
        perform_now(flags[flag](value))

    async def set_program(self, vcpu_id: int, program: object) -> None:
        """Load a script guest's program, from its top; waits for KVM_RUN to end. ENOTTY on other engines."""
        guest = self._script(self.vcpu(vcpu_id))
        steps = compile_program(program)
        await self._locked(vcpu_id, lambda: guest.load_program(steps, program))
        self._wake_threads()

    def _script(self, vcpu: Vcpu) -> ScriptGuest:
        if not isinstance(vcpu.guest, ScriptGuest):
            raise KvmError(
                errno.ENOTTY, "program", f"engine {self.engine} has no programs; write code to memory instead"
            )
        return vcpu.guest

    def _compile(self, program: object) -> Any:
        if self.engine != "script":
            raise KvmError(
                errno.ENOTTY, "program", f"engine {self.engine} has no programs; write code to memory instead"
            )
        return compile_program(program)

    # -- server-side VMM threads -------------------------------------------------------------------------

    def start_thread(self, vcpu_id: int, behaviour: str = "well", *, handle_exits: bool = True) -> None:
        """Start a VMM thread that loops KVM_RUN. EBUSY if one is running; EINVAL for an unknown behaviour."""
        if behaviour not in ("well", "careless"):
            raise KvmError(errno.EINVAL, "start", f"{behaviour!r} is none of well, careless", field="behaviour")
        vcpu = self.vcpu(vcpu_id)
        running = self.threads.get(vcpu_id)
        if running is not None and running.running:
            raise KvmError(errno.EBUSY, "start", f"vcpu {vcpu_id} has a thread already")
        self.admit("start")
        self.threads[vcpu_id] = VmmThread(self, vcpu, behaviour, handle_exits=handle_exits)

    async def stop_thread(self, vcpu_id: int) -> None:
        """Stop the vCPU's VMM thread by a signal and wait for it; nothing happens without one."""
        self.vcpu(vcpu_id)
        thread = self.threads.pop(vcpu_id, None)
        if thread is not None:
            await thread.stop()

    def _wake_threads(self) -> None:
        for thread in self.threads.values():
            thread.wake()

    # -- observers ---------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The VM's shape; reads state, takes nothing."""
        return {
            "id": self.id,
            "variant": self.variant,
            "engine": self.engine,
            "mode": self.mode,
            "irqchip": self.vm.irqchip,
            "switches": asdict(self.vm.switches),
            "kicked": bool(self.vm.variant.holds),
            "holds": self.vm.variant.holds,
            "vcpus": [self.describe_vcpu(vcpu_id) for vcpu_id in self.vm.vcpus],
            "memory_regions": self.regions(),
            "seq": self.log.seq,
            "epoch": self.log.epoch,
        }

    def describe_vcpu(self, vcpu_id: int) -> dict[str, Any]:
        """A vCPU's shape."""
        return views.vcpu(self.vcpu(vcpu_id), self.threads.get(vcpu_id))

    def regions(self) -> list[dict[str, Any]]:
        """The memory slots by number."""
        return [views.region(slot) for _, slot in sorted(self.vm.memslots.slots.items())]

    def locks(self) -> dict[str, Any]:
        """Who holds the variant's lock, who waits, in order and since when."""
        return views.locks(self.vm)
