"""The guest engines by name, each loaded when it is first asked for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kickstand.core.errors import KvmError
from kickstand.core.guest import Cpu, Guest
from kickstand.guests.host_memory import HostMemory
from kickstand.guests.script import ScriptGuest

MODES = ("precise", "fast")


class Make(Protocol):
    """Makes one vCPU's guest."""

    def __call__(self, cpu: Cpu, memory: HostMemory, /) -> Guest: ...


@dataclass(frozen=True, slots=True)
class EngineFactory:
    """How an engine's guests are made, and what those who use them have to know: nobody asks for its name."""

    make: Make
    caches_translations: bool = False  # slot updates have to interrupt them
    beside_loop: bool = False  # in guest mode they are on a thread of their own: nobody looks into them there
    runs_programs: bool = False  # script programs, instead of code in guest memory
    of_device: bool = False  # the real kernel's: it has the VM's state, which ends with the process


def _kernels_own(_cpu: Cpu, _memory: HostMemory, /) -> Guest:
    """The real kernel's vCPUs are made by their VM."""
    raise RuntimeError("a VM of the device makes its own vCPUs")


def engines() -> dict[str, str]:
    """Every engine by name, with the reason why it cannot be used here, or an empty string."""
    return {name: why_not() for name, why_not in _WHY_NOT.items()}


def _no_device() -> str:
    from kickstand.guests.kvm.device import unusable  # noqa: PLC0415  loaded only when it is asked for

    return (unusable() or (0, ""))[1]


_WHY_NOT: dict[str, Callable[[], str]] = {"script": str, "x86": str, "kvm": _no_device}
NAMES = tuple(_WHY_NOT)


def engine_factory(engine: str, mode: str) -> EngineFactory:
    """Return an engine's factory. EINVAL: unknown engine or mode; EOPNOTSUPP: it cannot be used here."""
    if engine not in _WHY_NOT:
        raise KvmError(
            errno.EINVAL, "KVM_CREATE_VM", f"no engine {engine!r}; there are {', '.join(_WHY_NOT)}", field="engine"
        )
    if mode not in MODES:
        raise KvmError(errno.EINVAL, "KVM_CREATE_VM", f"mode {mode!r} is none of {', '.join(MODES)}", field="mode")
    if why_not := _WHY_NOT[engine]():
        raise KvmError(errno.EOPNOTSUPP, "KVM_CREATE_VM", f"engine {engine}: {why_not}", field="engine")
    if engine == "kvm":
        return EngineFactory(_kernels_own, beside_loop=True, of_device=True)
    if engine == "script":
        return EngineFactory(ScriptGuest, runs_programs=True)
    from kickstand.guests.x86.guest import X86Guest  # noqa: PLC0415  unicorn is loaded only when it is used
    from kickstand.guests.x86.time_sharing.guest_thread import Turns  # noqa: PLC0415

    turns = Turns()  # of this VM's guest thread
    fast = mode == "fast"
    return EngineFactory(
        lambda cpu, memory: X86Guest(cpu, memory, mode, turns), caches_translations=fast, beside_loop=fast
    )
