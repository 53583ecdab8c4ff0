"""Plays operations on a machine in this process: the emulator, or the real /dev/kvm behind the same methods.

An operation that the kernel refuses is an answer like any other (``ret`` -1 and its ``errno``); only what is no
operation at all is an exception, and ``script.check`` has refused that before.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from kickstand.core.arch.cpu.cpuid import Entry
from kickstand.core.errors import KvmError, errno_name
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import KVM_IRQCHIP, KVM_LAPIC_STATE, KVM_PIT_STATE2, Fd, MpState
from kickstand.guests.host_memory import BLOCK
from kickstand.runtime.device import DeviceMachine
from kickstand.runtime.machine import Machine
from kickstand.runtime.runs import Run
from kickstand.scripts.language import operations as ops
from kickstand.scripts.language import structures
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import Operation, parse_each, parse_operation
from kickstand.scripts.language.presets import PRESETS, special_registers
from kickstand.scripts.language.script import LIMITS, ScriptLimits, check
from kickstand.scripts.play.forms import Result, coalesced_result, pattern, run_result, structure, target

RUN_TIMEOUT_MS = 10_000  # a guest that spins where the script expects an exit
SETTLE_TURNS = 16  # of the event loop, in which an emulated guest surely comes to its HLT or loop
SETTLE_MS = 2
SETTLE_DEVICE_MS = 5
ASLEEP = (VcpuState.HALTED, VcpuState.BLOCKED)
BREATH = 64  # operations that are checked in one turn of the event loop
TURN_S = 0.005  # for how long operations are performed in one


class Player:
    """Plays on one machine; ``presets`` are those of ``set_sregs``. The machine keeps the runs that scripts began."""

    def __init__(
        self,
        machine: Machine,
        presets: Mapping[str, Mapping[str, Any]] = PRESETS,
        *,
        run_timeout_ms: int = RUN_TIMEOUT_MS,
    ) -> None:
        self.machine = machine
        self.run_timeout_ms = run_timeout_ms
        self.timed_out = False  # a run spun where an exit was due
        self.presets = presets
        self.started = machine.runs.started

    async def play(self, operation: Operation | dict[str, Any]) -> Result:
        """Perform one operation and return its answer in the form of the recorded traces."""
        if isinstance(operation, dict):
            operation = parse_operation(operation)
        perform: Callable[[Any], Awaitable[Result | None]] = getattr(self, f"_{operation.op}")
        try:
            fields = await perform(operation.args)
        except KvmError as error:
            return {"ret": -1, "errno": errno_name(error.errno)}
        return {"ret": 0, "errno": None} | (fields or {})

    async def play_all(self, operations: list[Operation]) -> AsyncIterator[Result]:
        """Perform operations in order; other tasks get their turns."""
        due = time.monotonic() + TURN_S
        for operation in operations:
            yield await self.play(operation)
            if time.monotonic() >= due:
                await asyncio.sleep(0)
                due = time.monotonic() + TURN_S

    # -- host memory -----------------------------------------------------------------------------------------

    def _base(self, name: str) -> tuple[int, int]:
        """Host address and size of an arena."""
        for arena in reversed(self.machine.memory.arenas):
            if arena.name == name:
                return arena.base, arena.size
        raise ScriptError(f"there is no arena {name!r}", field="args.arena")

    async def _arena(self, args: ops.Arena) -> None:
        await self.machine.allocate_memory(args.size, args.name)

    async def _write_host(self, args: ops.WriteHost) -> None:
        await self.machine.write_memory(self._base(args.arena)[0] + args.offset, bytes.fromhex(args.hex))

    async def _fill_host(self, args: ops.FillHost) -> None:
        await self._fill(self._base(args.arena)[0] + args.offset, args.length, bytes([args.byte]) * BLOCK)

    async def _fill_pattern(self, args: ops.FillPattern) -> None:
        base, size = self._base(args.arena)
        await self._fill(base, size, pattern(BLOCK))

    async def _fill(self, base: int, length: int, block: bytes) -> None:
        for offset in range(0, length, len(block)):
            await self.machine.write_memory(base + offset, block[: length - offset])
            await asyncio.sleep(0)

    async def _read_host(self, args: ops.ReadHost) -> Result:
        data = self.machine.memory.read(self._base(args.arena)[0] + args.offset, args.length)
        return {"hex": data.hex()}

    async def _hash_host(self, args: ops.HashHost) -> Result:
        return {"sha256": await asyncio.to_thread(self._hash, *self._base(args.arena))}

    def _hash(self, base: int, size: int) -> str:
        seal = hashlib.sha256()
        for offset in range(0, size, BLOCK):
            seal.update(self.machine.memory.read(base + offset, min(BLOCK, size - offset)))
        return seal.hexdigest()

    # -- VM --------------------------------------------------------------------------------------------------

    def _region(self, args: ops.SetMemoryRegion) -> Region:
        host = args.host
        address = host.abs if host.arena is None else self._base(host.arena)[0] + (host.offset or 0)
        return Region(args.slot, args.flags, args.gpa, args.size, (address or 0) & ((1 << 64) - 1))

    async def _set_memory_region(self, args: ops.SetMemoryRegion) -> None:
        await self.machine.set_user_memory_region(self._region(args))

    async def _memory_transaction(self, args: ops.MemoryTransaction) -> Result:
        done = await self.machine.memory_transaction([self._region(region) for region in args.operations], args.protect)
        return {"results": done["results"]}

    async def _get_dirty_log(self, args: ops.GetDirtyLog) -> Result:
        return {"dirty_pages": await self.machine.get_dirty_log(args.slot)}

    async def _clear_dirty_log(self, args: ops.ClearDirtyLog) -> None:
        await self.machine.clear_dirty_log(args.slot, args.first_page, args.num_pages, args.bits)

    async def _create_irqchip(self, args: ops.CreateIrqchip) -> None:
        await self.machine.create_irqchip()

    async def _irq_line(self, args: ops.IrqLine) -> None:
        await self.machine.irq_line(args.irq, args.level)

    async def _signal_msi(self, args: ops.SignalMsi) -> Result:
        return {"delivered": await self.machine.signal_msi(args.address, args.data) > 0}

    async def _irq_line_status(self, args: ops.IrqLineStatus) -> Result:
        return {"status": (await self.machine.irq_line_status(args.irq, args.level))["status"]}

    async def _get_irqchip(self, args: ops.GetIrqchip) -> Result:
        return {"hex": (await self.machine.get_irqchip(args.chip_id))[1].hex()}

    async def _set_irqchip(self, args: ops.SetIrqchip) -> None:
        await self.machine.set_irqchip(args.chip_id, structure(args.hex, KVM_IRQCHIP.size - 8))

    async def _create_pit(self, args: ops.CreatePit) -> None:
        await self.machine.create_pit(args.flags)

    async def _get_pit(self, _: ops.GetPit) -> Result:
        return {"hex": (await self.machine.get_pit()).hex()}

    async def _set_pit(self, args: ops.SetPit) -> None:
        await self.machine.set_pit(structure(args.hex, KVM_PIT_STATE2.size))

    async def _set_gsi_routing(self, args: ops.SetGsiRouting) -> None:
        await self.machine.set_gsi_routing([(route.gsi, target(route), route.flags) for route in args.entries])

    async def _get_lapic(self, args: ops.GetLapic) -> Result:
        return {"hex": (await self.machine.get_lapic(args.vcpu)).hex()}

    async def _set_lapic(self, args: ops.SetLapic) -> None:
        await self.machine.set_lapic(args.vcpu, structure(args.hex, KVM_LAPIC_STATE.size))

    async def _create_vcpu(self, args: ops.CreateVcpu) -> None:
        await self.machine.create_vcpu(args.id, args.program)

    async def _raw_ioctl(self, args: ops.RawIoctl) -> None:
        await self.machine.raw_ioctl(Fd(args.on), args.request, args.vcpu)

    async def _kick(self, args: ops.Kick) -> Result:
        done = await self.machine.kick(self.run_timeout_ms if args.timeout_ms is None else args.timeout_ms)
        return {"changed": done["changed"], "holds": done["holds"]}

    async def _resume(self, args: ops.Resume) -> Result:
        done = await self.machine.resume()
        return {"changed": done["changed"], "holds": done["holds"]}

    # -- vCPU ------------------------------------------------------------------------------------------------

    async def _set_cpuid_supported(self, args: ops.SetCpuidSupported) -> None:
        await self.machine.set_cpuid_supported(args.vcpu)

    async def _set_cpuid(self, args: ops.SetCpuid) -> None:
        await self.machine.set_cpuid2(args.vcpu, [Entry(**entry.model_dump()) for entry in args.entries])

    async def _get_cpuid(self, args: ops.GetCpuid) -> Result:
        return {"entries": [asdict(entry) for entry in await self.machine.get_cpuid2(args.vcpu)]}

    async def _set_msrs(self, args: ops.SetMsrs) -> Result:
        return {"taken": await self.machine.set_msrs(args.vcpu, [(msr.index, msr.data) for msr in args.msrs])}

    async def _get_msrs(self, args: ops.GetMsrs) -> Result:
        values = await self.machine.get_msrs(args.vcpu, args.indices)
        return {"msrs": [{"index": index, "data": value} for index, value in values]}

    async def _set_sregs(self, args: ops.SetSregs) -> None:
        await self.machine.set_sregs(args.vcpu, special_registers(self.presets, args.preset, args.changes))

    async def _set_regs(self, args: ops.SetRegs) -> None:
        await self.machine.set_regs(args.vcpu, dict.fromkeys(ops.REGISTERS, 0) | args.regs)

    async def _change_regs(self, args: ops.ChangeRegs) -> None:
        await self.machine.set_regs(args.vcpu, args.regs)

    async def _get_regs(self, args: ops.GetRegs) -> Result:
        return {"regs": await self.machine.get_regs(args.vcpu)}

    async def _get_sregs(self, args: ops.GetSregs) -> Result:
        values = await self.machine.get_sregs(args.vcpu)
        return {"sregs": {name: values[name] for name in args.only if name in values}}

    async def _get_mp_state(self, args: ops.GetMpState) -> Result:
        return {"mp_state": MpState(await self.machine.get_mp_state(args.vcpu)).name}

    async def _set_mp_state(self, args: ops.SetMpState) -> None:
        await self.machine.set_mp_state(args.vcpu, args.mp_state)

    async def _interrupt(self, args: ops.Interrupt) -> None:
        await self.machine.interrupt(args.vcpu, args.vector)

    async def _nmi(self, args: ops.Nmi) -> None:
        await self.machine.nmi(args.vcpu)

    async def _ioctl(self, args: ops.Ioctl) -> Result:
        found = structures.declared(args)
        abi = found.abi
        assert abi is not None
        number, pages = structures.pages_of(args, found)
        if isinstance(self.machine, DeviceMachine):
            value = await self.machine.issue(abi, number, pages, args.vcpu)
        else:
            value = await found.call(self.machine, number, pages, args.vcpu)
        return structures.answer(args, abi, value, pages)

    async def _coalesced(self, _: ops.Coalesced) -> Result:
        return coalesced_result(await self.machine.drain_coalesced())

    async def _dirty_ring(self, args: ops.DirtyRing) -> Result:
        pages = await self.machine.harvest_dirty_ring(args.vcpu)
        return {"pages": [{"slot": slot, "page": page} for slot, page in pages]}

    async def _signal(self, args: ops.Signal) -> None:
        await self.machine.signal(args.vcpu)

    async def _set_run_flag(self, args: ops.SetRunFlag) -> None:
        await self.machine.set_run_flag(args.vcpu, args.flag, bool(args.value))

    async def _set_program(self, args: ops.SetProgram) -> None:
        await self.machine.set_program(args.vcpu, args.program)

    async def _start_thread(self, args: ops.StartThread) -> None:
        await self.machine.start_thread(args.vcpu, args.behaviour, handle_exits=args.handle_exits)

    async def _stop_thread(self, args: ops.StopThread) -> None:
        await self.machine.stop_thread(args.vcpu)

    # -- KVM_RUN ---------------------------------------------------------------------------------------------

    def _begin(self, args: ops.Run | ops.StartRun) -> Run:
        reply = None if args.reply is None else bytes.fromhex(args.reply)
        return self.machine.start_run(
            args.vcpu, reply=reply, immediate_exit=args.immediate_exit, timeout_ms=self.run_timeout_ms
        )

    async def _run(self, args: ops.Run) -> Result:
        run = self._begin(args)
        if args.kick_after_ms is not None:
            await self._let_run(args.vcpu, args.kick_after_ms)
            run.signal(Cause.SIGNAL)
        return await self._result(run)

    async def _result(self, run: Run) -> Result:
        answer = await run.result()
        self.timed_out = self.timed_out or run.sent is Cause.POLL_TIMEOUT
        return run_result(answer)

    async def _start_run(self, args: ops.StartRun) -> None:
        self.started[args.vcpu] = self._begin(args)
        await self._let_run(args.vcpu, SETTLE_DEVICE_MS)

    async def _finish_run(self, args: ops.FinishRun) -> Result:
        return await self._result(self.started.pop(args.vcpu))

    async def _let_run(self, vcpu: int, ms: int) -> None:
        """Give a guest so many milliseconds; an emulated one is there earlier, and asleep at once."""
        if self.machine.guests.beside_loop:
            await asyncio.sleep(ms / 1000)
            return
        watched = self.machine.vcpu(vcpu).watched
        end = time.monotonic() + min(ms, SETTLE_MS) / 1000
        turns = 0
        while turns < SETTLE_TURNS or time.monotonic() < end:
            await asyncio.sleep(0)
            turns += 1
            if watched.state in ASLEEP:
                return


async def play_script(machine: Machine, body: object, limits: ScriptLimits = LIMITS) -> AsyncIterator[Result]:
    """``POST /vm/script``: a list of operations, or ``{operations, presets?}``; yields their answers in order.

    ``ScriptError`` before anything is touched.
    """
    player = Player(machine)
    given = body.get("operations") if isinstance(body, dict) else body
    operations: list[Operation] = []
    for operation in parse_each(given):
        operations.append(operation)
        if len(operations) % BREATH == 0 or isinstance(operation.args, ops.SetProgram | ops.CreateVcpu):
            await asyncio.sleep(0)  # a program takes as long as many operations
    arenas = {arena.name: arena.size for arena in machine.memory.arenas if arena.name}
    await asyncio.sleep(0)
    check(operations, player.presets, limits, arenas=arenas, vcpus=machine.vm.vcpus, started=player.started)
    async for result in player.play_all(operations):
        yield result
