"""The ioctls of a machine that concern one vCPU, and what its VMM does with the vCPU's thread."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.uapi import Fd, MpState, ioctl_by_request, unknown_errno
from kickstand.guests.engines import EngineFactory
from kickstand.guests.program import compile_program
from kickstand.guests.script import ScriptGuest
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver.tasks import perform_now
from kickstand.runtime.observed import views
from kickstand.runtime.runs import DEFAULT_RUN_MS, Run, Runs
from kickstand.runtime.vmm.process import Process
from kickstand.runtime.vmm.threads import Threads

T = TypeVar("T")


class VcpuIoctls(Process):
    """What a machine has of them."""

    engine: str
    guests: EngineFactory
    runs: Runs
    threads: Threads

    @ioctl("KVM_RUN", admitted=True, recorded=True)
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
            raise self.gone("KVM_RUN")
        self.admit_run()
        vcpu = self.vcpu(vcpu_id)
        if nowait and vcpu.mutex.owner is not None:
            raise KvmError(errno.EBUSY, "KVM_RUN", f"vcpu {vcpu_id} is in an ioctl of another thread")
        self._check_reply(vcpu, reply)
        return self.runs.begin(vcpu, views.page_writes(reply, immediate_exit), timeout_ms)

    def _check_reply(self, vcpu: AnyVcpu, reply: bytes | None) -> None:
        pending = vcpu.arch.pending
        expected = pending.reply_length if pending is not None else 0
        if reply is not None and len(reply) != expected:
            takes = f"the access that waits takes {expected} bytes" if expected else "no access waits for bytes"
            raise KvmError(errno.EINVAL, "KVM_RUN", f"{takes}; the reply has {len(reply)}", field="reply")

    async def run(self, vcpu_id: int, **options: Any) -> dict[str, Any]:
        """``start_run`` and its result in one; cancelled, it leaves as a departed client does."""
        return await self.start_run(vcpu_id, **options).result()

    @ioctl("KVM_GET_REGS", recorded=True, alone=True, gives=dict)
    async def get_regs(self, vcpu_id: int) -> dict[str, int]:
        """KVM_GET_REGS: unlike the ioctl it waits for KVM_RUN to end only if the guest runs beside the loop."""
        return await self._look(vcpu_id, self.vcpu(vcpu_id).guest.registers)

    @ioctl("KVM_SET_REGS", durable=True, recorded=True, takes=lambda regs: (regs.fields,))
    async def set_regs(self, vcpu_id: int, registers: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the named registers; waits for KVM_RUN to end."""
        guest = self.vcpu(vcpu_id).guest
        await self._locked(vcpu_id, lambda: guest.set_registers(registers))

    @ioctl("KVM_GET_SREGS", recorded=True, alone=True, gives=dict)
    async def get_sregs(self, vcpu_id: int) -> dict[str, object]:
        """KVM_GET_SREGS, as ``get_regs``."""
        return await self._look(vcpu_id, self.vcpu(vcpu_id).guest.special_registers)

    @ioctl("KVM_SET_SREGS", durable=True, recorded=True, takes=lambda sregs: (sregs.fields,))
    async def set_sregs(self, vcpu_id: int, changes: Mapping[str, object]) -> None:
        """KVM_SET_SREGS for the named registers, within segments too; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).set_special_registers(changes, self.thread().tid))

    @ioctl("KVM_GET_MP_STATE", recorded=True, alone=True, gives=lambda state: {"mp_state": state})
    async def get_mp_state(self, vcpu_id: int) -> MpState:
        """KVM_GET_MP_STATE, without waiting for KVM_RUN to end: else it takes an INIT or SIPI that is pending."""
        return await self._mp_state(vcpu_id)

    @ioctl("KVM_SET_MP_STATE", durable=True, recorded=True, takes=lambda state: (state["mp_state"],))
    async def set_mp_state(self, vcpu_id: int, mp_state: int) -> None:
        """KVM_SET_MP_STATE; waits for KVM_RUN to end. EINVAL for a number that is no state."""
        await self._set_mp_state(vcpu_id, mp_state)

    @ioctl("KVM_INTERRUPT", durable=True, recorded=True, takes=lambda interrupt: (interrupt["irq"],))
    async def interrupt(self, vcpu_id: int, vector: int) -> None:
        """KVM_INTERRUPT; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).interrupt(vector, self.thread().tid))
        self.threads.wake()

    @ioctl("KVM_NMI", durable=True, recorded=True)
    async def nmi(self, vcpu_id: int) -> None:
        """KVM_NMI; waits for KVM_RUN to end."""
        await self.call(self.vcpu(vcpu_id).inject_nmi(self.thread().tid))
        self.threads.wake()

    @ioctl("set_cpuid_supported", durable=True, recorded=True)
    async def set_cpuid_supported(self, vcpu_id: int) -> None:
        """KVM_SET_CPUID2 with what KVM_GET_SUPPORTED_CPUID lists; an emulated CPU has one table only.

        EINVAL once the vCPU has been in guest mode: what the kernel keeps by then is not what it lists.
        """
        await self._set_cpuid_supported(vcpu_id)

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

    @ioctl("signal", durable=True, recorded=True)
    async def signal(self, vcpu_id: int) -> None:
        """Send a signal to the vCPU's thread; without a KVM_RUN it stays pending for the next."""
        vcpu = self.vcpu(vcpu_id)
        perform_now(vcpu.send_signal())
        self.threads.wake()

    @ioctl("kvm_run", durable=True, recorded=True)
    async def set_run_flag(self, vcpu_id: int, flag: str, value: bool) -> None:
        """Write ``immediate_exit`` or ``request_interrupt_window`` of the shared page; it stays so. EINVAL: another."""
        page = self.vcpu(vcpu_id).run_page
        flags = {
            "immediate_exit": page.keep_immediate_exit,
            "request_interrupt_window": page.set_request_interrupt_window,
        }
        if flag not in flags:
            raise KvmError(errno.EINVAL, "kvm_run", f"{flag!r} is none of {', '.join(flags)}", field="flag")
        perform_now(flags[flag](value))

    @ioctl("program", durable=True, recorded=True)
    async def set_program(self, vcpu_id: int, program: object) -> None:
        """Load a script guest's program, from its top; waits for KVM_RUN to end. ENOTTY on other engines."""
        guest = self._script(self.vcpu(vcpu_id))
        steps = compile_program(program)
        await self._locked(vcpu_id, lambda: guest.load_program(steps, program))
        self.threads.wake()

    @ioctl("start", durable=True, recorded=True)
    async def start_thread(self, vcpu_id: int, behaviour: str = "well", *, handle_exits: bool = True) -> None:
        """Start a VMM thread that loops KVM_RUN. EBUSY if one is running; EINVAL for an unknown behaviour."""
        self.threads.start(self.vcpu(vcpu_id), behaviour, handle_exits=handle_exits)

    @ioctl("stop", durable=True, recorded=True)
    async def stop_thread(self, vcpu_id: int) -> None:
        """Stop the vCPU's VMM thread by a signal and wait for it; nothing happens without one."""
        self.vcpu(vcpu_id)
        await self.threads.stop(vcpu_id)

    # -- what engines do in ways of their own ---------------------------------------------------------------

    async def _look(self, vcpu_id: int, read: Callable[[], T]) -> T:
        vcpu = self.vcpu(vcpu_id)
        if not self.guests.beside_loop or vcpu.mutex.owner is None:
            return read()
        return await self.call(vcpu.with_mutex(read, self.thread().tid))

    async def _locked(self, vcpu_id: int, body: Callable[[], None]) -> None:
        await self.call(self.vcpu(vcpu_id).with_mutex(body, self.thread().tid))

    async def _mp_state(self, vcpu_id: int) -> MpState:
        return await self.call(self.vcpu(vcpu_id).get_mp_state())

    async def _set_mp_state(self, vcpu_id: int, mp_state: int) -> None:
        if mp_state not in MpState.__members__.values():
            raise KvmError(errno.EINVAL, "KVM_SET_MP_STATE", f"{mp_state} is no state", field="mp_state")
        await self.call(self.vcpu(vcpu_id).set_mp_state(MpState(mp_state), self.thread().tid))

    async def _set_cpuid_supported(self, vcpu_id: int) -> None:
        if self.vcpu(vcpu_id).watched.counters.entries:
            raise KvmError(errno.EINVAL, "KVM_SET_CPUID2", f"vcpu {vcpu_id} has been in guest mode")

    def _script(self, vcpu: AnyVcpu) -> ScriptGuest:
        if not isinstance(vcpu.guest, ScriptGuest):
            raise self._no_programs()
        return vcpu.guest

    def _compile(self, program: object) -> Any:
        if not self.guests.runs_programs:
            raise self._no_programs()
        return compile_program(program)

    def _no_programs(self) -> KvmError:
        detail = f"engine {self.engine} has no programs; write code to memory instead"
        return KvmError(errno.ENOTTY, "program", detail)

    def describe_vcpu(self, vcpu_id: int) -> dict[str, Any]:
        """A vCPU's shape."""
        return views.vcpu(self.vcpu(vcpu_id), self.threads.get(vcpu_id))
