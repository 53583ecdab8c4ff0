"""Store buffers: x86's memory order (TSO) instead of sequential consistency.

Each CPU that a vCPU's thread runs on has a buffer. What the core declares as a plain store (``atomics.plain``) goes
into it, in order, and reaches memory when a drain thread of its own says so; the thread itself sees its stores at once.
Plain loads look into memory past the buffer. Every other operation on what threads have in common is a locked
instruction or has a full barrier: it goes on once the buffer is empty. A barrier that is left out makes of its
operation what the declaration says: plain stores, or loads.

VMM threads have no buffer: their plain stores (``immediate_exit``) are followed by a system call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kickstand.core.atomics import Blocked, Plain, Shared, Task, atomic, blocked
from kickstand.core.shared.requests import RequestBits, VcpuMode
from kickstand.explore.world.parts import Role, Thread, World

SC, TSO = "sc", "tso"
BARRIERS = ("smp_mb__after_srcu_read_unlock", "set_current_state")  # that the core declares, and may be left out
MEMORIES = (SC, TSO, *(f"{TSO}-{barrier}" for barrier in BARRIERS))
Entry = tuple[int, str, Any]  # the object's number, the field, the value


class StoreBuffer(Shared):
    """One CPU's stores that memory has not seen, oldest first."""

    __slots__ = ("entries",)
    FIELDS = ("entries",)

    def __init__(self) -> None:
        super().__init__()
        self.entries: tuple[Entry, ...] = ()

    @atomic
    async def drain(self, *objects: Shared) -> None:
        """The oldest store reaches memory."""
        while not self.entries:
            await blocked(self)
        (number, name, value), *rest = self.entries
        self.entries = tuple(rest)
        setattr(objects[number], name, value)
        objects[number].stored()
        self.changed()


@dataclass(frozen=True, slots=True)
class Buffered:
    """Performs an operation on a CPU with a store buffer; ``plain`` None: a locked instruction or a full barrier.

    ``number`` is that of the operation's object in the buffer.
    """

    plain: Plain | None
    number: int

    async def __call__(self, operate: Callable[..., Any], objects: tuple[Any, ...], extra: list[Shared]) -> Any:
        (buffer,) = extra
        assert isinstance(buffer, StoreBuffer)
        if self.plain is None:
            while buffer.entries:
                await blocked(buffer)
            return await operate(*objects)
        while True:
            waits, answer = self._attempt(operate, objects, buffer)
            if waits is None:
                return answer
            await waits

    def _attempt(
        self, operate: Callable[..., Any], objects: tuple[Any, ...], buffer: StoreBuffer
    ) -> tuple[Blocked | None, Any]:
        """Perform it in the CPU's own view, and put what it stores into the buffer."""
        own: Shared = objects[0]
        shared = [item for item in objects if isinstance(item, Shared)]
        memory = [item.state() for item in shared]
        for number, name, value in buffer.entries:
            if number == self.number:
                setattr(own, name, value)
        view = own.state()
        operation = operate(*objects)
        try:
            waits = operation.send(None)
        except StopIteration as stop:
            waits, answer = None, stop.value
        else:
            operation.close()
            answer = None
        after = [item.state() for item in shared]
        changed = _changed(own, view, after[0])
        if waits is None and (after[1:] != memory[1:] or not changed <= self._stores()):
            if not buffer.entries:
                return None, answer
            waits = blocked(buffer)
        for item, state in zip(shared, memory, strict=True):
            item.load(state)
        if waits is None and changed:
            values = dict(zip(own.FIELDS, after[0], strict=True))
            buffer.entries += tuple((self.number, name, values[name]) for name in own.FIELDS if name in changed)
            buffer.changed()
        return waits, answer

    def _stores(self) -> set[str]:
        return set() if self.plain is None else set(self.plain.stores)


def _changed(own: Shared, before: tuple[Any, ...], after: tuple[Any, ...]) -> set[str]:
    if not own.FIELDS:
        return set() if before == after else {"*"}
    return {name for name, old, new in zip(own.FIELDS, before, after, strict=True) if old != new}


@dataclass(slots=True)
class Stores:
    """The store buffers of a world: one for each vCPU's thread."""

    memory: str
    buffers: dict[int, Any] = field(default_factory=dict)  # by thread
    numbers: dict[int, int] = field(default_factory=dict)  # of objects whose stores are buffered, by identity
    common: set[int] = field(default_factory=set)  # objects that are no vCPU's own, or that others use

    def way(
        self, thread: int, method: Any, target: Any, others: tuple[Any, ...]
    ) -> tuple[Buffered, tuple[Any, ...]] | None:
        """How ``thread`` performs ``method`` on ``target``; None: plainly, as no buffer has to do with it."""
        buffered = self._buffered(method, target, others) if thread in self.buffers else None
        return None if buffered is None else (buffered, (self.buffers[thread],))

    def _buffered(self, method: Any, target: Any, others: tuple[Any, ...]) -> Buffered | None:
        plain: Plain | None = getattr(method, "plain", None)
        if plain is not None and plain.barrier is not None:
            if self.memory != f"{TSO}-{plain.barrier}":
                return Buffered(None, -1)
            if not plain.stores:
                return None
        if plain is None and not any(id(item) in self.common for item in (target, *others)):
            return None
        return Buffered(plain, self.numbers.get(id(target), -1))


def add_stores(world: World, share: Callable[[Any], Any], memory: str) -> Stores:
    """Give the CPU of each vCPU thread a store buffer and a thread that drains it."""
    stores = Stores(memory)
    real = {id(shared): getattr(shared, "_real", shared) for shared, _ in world.shared}
    for shared, owner in world.shared:
        if owner is None or isinstance(real[id(shared)], RequestBits | VcpuMode | Task):
            stores.common.add(id(shared))
    for number, thread in enumerate(tuple(world.threads)):
        if thread.role is not Role.VCPU or thread.vcpu is None:
            continue
        buffer = share(StoreBuffer())
        stores.buffers[number] = buffer
        buffered = (thread.vcpu.mode, thread.vcpu.task)
        stores.numbers.update({id(shared): at for at, shared in enumerate(buffered)})
        name = thread.name.replace("CPU", "SB")
        world.threads.append(Thread(name, thread.vm, Role.DRAIN, _drainer(buffer, buffered), rests=True))
        world.named.append((buffer, f"{name}.buffer"))
    return stores


def _drainer(buffer: Any, objects: tuple[Any, ...]) -> Callable[[], Any]:
    async def drain() -> None:
        while True:
            await buffer.drain(*objects)

    return drain
