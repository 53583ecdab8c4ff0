"""How an ioctl is declared: on the method that performs it, and nowhere else.

The declaration says what goes on around the method for every caller (REST, scripts, programs that speak bytes), and
gives it its place in ``runtime.table``, where callers find it by its number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kickstand.core.uapi import IOCTLS, Direction, Fd, Ioctl
from kickstand.runtime.calls.arguments import Argument, Memory
from kickstand.runtime.calls.durable import admitted as refuse_unkept
from kickstand.runtime.calls.durable import kept
from kickstand.runtime.calls.history import noted

F = TypeVar("F", bound=Callable[..., Any])
Takes = Callable[[Argument], tuple[Any, ...]]
Gives = Callable[[Any], Any]
Fills = Callable[[Any, Argument], None]


@dataclass(frozen=True, slots=True)
class Declaration:
    """One ioctl as its method performs it. ``abi`` is None for what KVM has no number for."""

    name: str
    method: str
    durable: bool
    recorded: bool
    abi: Ioctl | None = None
    takes: Takes | None = None
    gives: Gives | None = None
    fills: Fills | None = None

    async def call(self, target: Any, number: int, memory: Memory, vcpu_id: int | None = None) -> int:
        """Perform it on a machine (the system's: on a registry) as ``ioctl(fd, request, number)`` does.

        Reads the structure at ``number``, writes what the ioctl fills in, and returns what ``ioctl`` returns. Raises
        ``KvmError`` with the method's errno, and EFAULT as ``memory`` does. Cancellation: as the method.
        """
        argument = self._argument(target, number, memory)
        of = () if vcpu_id is None else (vcpu_id,)
        result = await getattr(target, self.method)(*of, *(self.takes(argument) if self.takes else ()))
        if self.fills is not None:
            self.fills(result, argument)
        if self.gives is None:
            return 0
        given = self.gives(result)
        if isinstance(given, int):
            return given
        assert self.abi is not None
        assert self.abi.payload is not None
        memory.write(number, self.abi.payload.pack(given))
        return 0

    def _argument(self, target: Any, number: int, memory: Memory) -> Argument:
        payload = None if self.abi is None else self.abi.payload
        if payload is None or self.abi is None or not self.abi.direction & Direction.WRITE:
            return Argument(number, memory, target)
        return Argument(number, memory, target, payload.unpack(memory.read(number, payload.size)))


def ioctl(
    name: str,
    *,
    durable: bool = False,
    admitted: bool = False,
    recorded: bool = False,
    alone: bool = False,
    fd: Fd | None = None,
    takes: Takes | None = None,
    gives: Gives | None = None,
    fills: Fills | None = None,
) -> Callable[[F], F]:
    """Declare that a method performs the ioctl ``name``, or something of Kickstand's own that has no number.

    ``durable``: it is refused while nothing can be kept, and returns after its outcome is. ``admitted``: only the
    former; its outcome is kept another way. ``recorded``: its calls are in the machine's history, and
    a script can say them (``alone``: as in ``noted``).

    For callers that speak bytes: ``takes`` makes the method's arguments (after the vCPU) from the ioctl's; ``gives``
    makes the return value or, for an ioctl that fills in its structure, the structure's fields from the method's
    result; ``fills`` writes elsewhere. ``fd`` where several kinds of descriptor know the name.
    """

    def declare(method: F) -> F:
        abi = next((known for known in IOCTLS if known.name == name and fd in (None, known.fd)), None)
        if durable and not inspect.iscoroutinefunction(method):
            raise TypeError(f"{name}: a method that returns before its outcome is there cannot be durable")
        if abi is not None and abi.direction & Direction.WRITE and takes is None:
            raise TypeError(f"{name} is given a structure: say what of it the method takes")
        if abi is not None and abi.direction == Direction.READ and gives is None:
            raise TypeError(f"{name} fills in a structure: say what its method gives")
        done: Callable[..., Any] = noted(method, alone=alone) if recorded else method
        if durable:
            done = kept(name, done, about_vcpu="vcpu_id" in inspect.signature(method).parameters)
        elif admitted:
            done = refuse_unkept(name, done)
        about = Declaration(name, method.__name__, durable, recorded, abi, takes, gives, fills)
        done.ioctl = about  # type: ignore[attr-defined]  # a mark on a function object
        return done  # type: ignore[return-value]  # called as the method is

    return declare


def declaration(method: Callable[..., Any]) -> Declaration | None:
    """What is declared of a method, if anything is."""
    return getattr(method, "ioctl", None)


class Ioctls:
    """A class whose methods are ioctls. A subclass changes what they call: it cannot lose what is declared of them."""

    def __init_subclass__(cls) -> None:
        for name, member in vars(cls).items():
            inherited = any(declaration(vars(base).get(name)) for base in cls.__mro__[1:])  # type: ignore[arg-type]
            if inherited and declaration(member) is None:
                raise TypeError(
                    f"{cls.__name__}.{name} is an ioctl of its base: declare it again, or change what it calls"
                )
