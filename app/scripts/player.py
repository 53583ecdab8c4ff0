"""Plays operations on a machine in this process: the emulator, or the real /dev/kvm behind the same methods.

An operation that the kernel refuses is an answer like any other (``ret`` -1 and its ``errno``); only what is no
operation at all is an exception, and ``script.check`` has refused that before.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from app.core.errors import KvmError, errno_name
from app.core.memslots import Region
from app.core.run_page import Cause
from app.core.trace import VcpuState
from app.core.uapi import Fd, MpState
from app.runtime.machine import Machine
from app.runtime.runs import Run
from app.scripts import operations as ops
from app.scripts.errors import ScriptError
from app.scripts.parse import Operation, parse_operation, parse_operations
from app.scripts.presets import PRESETS, special_registers
from app.scripts.script import LIMITS, ScriptLimits, check

Result = dict[str, Any]
RUN_TIMEOUT_MS = 10_000  # a guest that spins where the script expects an exit
SETTLE_TURNS = 16  # of the event loop, in which an emulated guest surely comes to its HLT or loop
SETTLE_MS = 2
SETTLE_DEVICE_MS = 5
ASLEEP = (VcpuState.HALTED, VcpuState.BLOCKED)
BREATH = 64  # operations between two turns of the event loop


class Player:
    """Plays on one machine; ``presets`` are those of ``set_sregs``.

    It remembers the runs that ``start_run`` began, so one machine has one player: ``player_of``.
    """

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
        self.started: dict[int, Run] = {}

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
        for number, operation in enumerate(operations):
            yield await self.play(operation)
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)

    # -- host memory -----------------------------------------------------------------------------------------

    def _base(self, name: str) -> tuple[int, int]:
        """Host address and size of an arena."""
        for arena in reversed(self.machine.memory.arenas):
            if arena.name == name:
                return arena.base, arena.size
        raise ScriptError(f"there is no arena {name!r}", field="args.arena")

    async def _arena(self, args: ops.Arena) -> None:
        self.machine.memory.allocate(args.size, args.name)

    async def _write_host(self, args: ops.WriteHost) -> None:
        self.machine.memory.write(self._base(args.arena)[0] + args.offset, bytes.fromhex(args.hex))

    async def _fill_host(self, args: ops.FillHost) -> None:
        self.machine.memory.write(self._base(args.arena)[0] + args.offset, bytes([args.byte]) * args.length)

    async def _fill_pattern(self, args: ops.FillPattern) -> None:
        base, size = self._base(args.arena)
        self.machine.memory.write(base, pattern(size))

    async def _read_host(self, args: ops.ReadHost) -> Result:
        data = self.machine.memory.read(self._base(args.arena)[0] + args.offset, args.length)
        return {"hex": data.hex()}

    async def _hash_host(self, args: ops.HashHost) -> Result:
        base, size = self._base(args.arena)
        return {"sha256": hashlib.sha256(self.machine.memory.read(base, size)).hexdigest()}

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
        return {"delivered": await self.machine.signal_msi(args.address, args.data)}

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

    async def _signal(self, args: ops.Signal) -> None:
        self.machine.signal(args.vcpu)

    async def _set_run_flag(self, args: ops.SetRunFlag) -> None:
        self.machine.set_run_flag(args.vcpu, args.flag, bool(args.value))

    async def _set_program(self, args: ops.SetProgram) -> None:
        await self.machine.set_program(args.vcpu, args.program)

    async def _start_thread(self, args: ops.StartThread) -> None:
        self.machine.start_thread(args.vcpu, args.behaviour, handle_exits=args.handle_exits)

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
        if self.machine.engine == "kvm" or self.machine.mode == "fast":
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


_players: WeakKeyDictionary[Machine, Player] = WeakKeyDictionary()


def player_of(machine: Machine) -> Player:
    """The player of a machine that lives on between requests."""
    return _players.setdefault(machine, Player(machine))


async def play_script(machine: Machine, body: object, limits: ScriptLimits = LIMITS) -> AsyncIterator[Result]:
    """``POST /vm/script``: a list of operations, or ``{operations, presets?}``; yields their answers in order.

    ``ScriptError`` before anything is touched.
    """
    player = player_of(machine)
    given = body.get("operations") if isinstance(body, dict) else body
    operations = parse_operations(given)
    arenas = {arena.name: arena.size for arena in machine.memory.arenas if arena.name}
    check(operations, player.presets, limits, arenas=arenas, vcpus=machine.vm.vcpus, started=player.started)
    async for result in player.play_all(operations):
        yield result


@cache
def _units() -> bytes:
    return b"".join((index | 0xC35A_0000).to_bytes(4, "little") for index in range(1 << 16))


def pattern(size: int) -> bytes:
    """What ``fill_pattern`` writes: 32-bit unit i is ``i & 255, i >> 8 & 255, 0x5a, 0xc3``."""
    units = _units()
    return (units * -(-size // len(units)))[:size]


def run_result(answer: Mapping[str, Any]) -> Result:
    """KVM_RUN's answer (``Machine.run``) in the form of the recorded traces."""
    result: Result = {name: answer[name] for name in ("ret", "errno")}
    result["exit_reason"] = str(answer["exit_reason"]).removeprefix("KVM_EXIT_")
    details: Mapping[str, Any] = answer.get("io") or answer.get("mmio") or {}
    result |= {name: value for name, value in details.items() if value is not None}
    if "phys_addr" in result:
        result["phys_addr"] = int(result["phys_addr"], 16)
    if "internal_error" in answer:
        result["suberror"] = answer["internal_error"]["suberror"]
    return result
