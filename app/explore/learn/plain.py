"""State that a variant keeps in plain Python is seen by all threads and by no explorer: it is refused.

What threads share has to lie in ``Shared`` objects, where each access is a step. The variant's attributes, and those
that it puts on a vCPU, are fixed once the world is made; a coroutine that goes another way when it is run again reads
something else that changes.
"""

from __future__ import annotations

from typing import Any

from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.variants import Variant

CURE = "put it into a Shared object (vm.share), whose @atomic methods are the steps"


class PlainStateError(ValueError):
    """The variant's code cannot be explored; the message says which attribute, where, and what to do."""


def _refuse(owner: Any, name: str, value: object) -> None:
    raise PlainStateError(
        f"{_who(owner)}.{name} is set to {value!r} while threads run: other threads see it, the explorer cannot; {CURE}"
    )


def _who(owner: Any) -> str:
    return f"vcpu {owner.id}" if isinstance(owner, AnyVcpu) else owner.name or type(owner).__name__


def _attributes_of_variants(owner: object) -> set[str]:
    return set(vars(Variant(owner.vm))) if isinstance(owner, Variant) else set()


class Guard:
    """Keeps the attributes of a world's variants and vCPUs as they are."""

    def __init__(self, variants: list[Variant], vcpus: list[AnyVcpu]) -> None:
        self.kept: list[tuple[Any, str, Any, str]] = []
        owners: list[Any] = [*variants, *vcpus]
        for owner in owners:
            kind = type(owner)
            own = _attributes_of_variants(owner)
            self.kept += [
                (owner, name, value, repr(value))
                for name, value in vars(owner).items()
                if isinstance(value, list | dict | set | bytearray)
            ]
            owner.__class__ = type(kind.__name__, (kind,), {"__setattr__": _setter(own), "__module__": kind.__module__})

    def check(self) -> None:
        """Raises ``PlainStateError`` if a list, dict or set has changed."""
        for owner, name, value, before in self.kept:
            if repr(value) != before:
                raise PlainStateError(
                    f"{_who(owner)}.{name} was {before} and is {value!r}: others see it, the explorer cannot; {CURE}"
                )


def _setter(own: set[str]) -> Any:
    """What every variant has for watchers stays as it was at the start: no thread may learn anything from it."""

    def setter(self: Any, name: str, value: object) -> None:
        if name not in own:
            _refuse(self, name, value)

    return setter
