"""The guest engines by name, each loaded when it is first asked for."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.core.errors import KvmError
from app.guests.script import ScriptGuest

if TYPE_CHECKING:
    from app.core.guest import Guest
    from app.core.vcpu import Vcpu
    from app.guests.host_memory import HostMemory

MODES = ("precise", "fast")


class Make(Protocol):
    """Makes one vCPU's guest."""

    def __call__(self, vcpu: Vcpu, memory: HostMemory, /) -> Guest: ...


@dataclass(frozen=True, slots=True)
class EngineFactory:
    """How an engine's guests are made, and whether slot updates have to interrupt them."""

    make: Make
    caches_translations: bool


def _kernels_own(_vcpu: Vcpu, _memory: HostMemory, /) -> Guest:
    """The real kernel's vCPUs are made by their VM."""
    raise RuntimeError("a VM of the device makes its own vCPUs")


def engines() -> dict[str, str]:
    """Every engine by name, with the reason why it cannot be used here, or an empty string."""
    return {name: why_not() for name, why_not in _WHY_NOT.items()}


def _no_unicorn() -> str:
    return "" if importlib.util.find_spec("unicorn") else "the unicorn package is not installed"


def _no_device() -> str:
    from app.guests.kvm.device import unusable  # noqa: PLC0415  loaded only when it is asked for

    return (unusable() or (0, ""))[1]


_WHY_NOT: dict[str, Callable[[], str]] = {"script": str, "x86": _no_unicorn, "kvm": _no_device}


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
        return EngineFactory(_kernels_own, caches_translations=False)
    if engine == "script":
        return EngineFactory(ScriptGuest, caches_translations=False)
    from app.guests.x86.guest import X86Guest  # noqa: PLC0415  unicorn is loaded only when it is used
    from app.guests.x86.turns import Turns  # noqa: PLC0415

    turns = Turns()  # of this VM's guest thread
    return EngineFactory(lambda vcpu, memory: X86Guest(vcpu, memory, mode, turns), caches_translations=mode == "fast")
