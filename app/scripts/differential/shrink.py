"""The shortest script that still shows a difference: delta debugging over operations, then over program bytes.

Source: Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (ddmin), 2002. A removed
operation may leave others without their arena or vCPU; such a script is refused and counts as no difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def shrink(items: Sequence[T], fails: Callable[[list[T]], Awaitable[bool]], budget: int = 400) -> list[T]:
    """Return a subsequence for which ``fails`` holds and of which no single item can go.

    ``fails(items)`` must hold. After ``budget`` trials the best so far is returned.
    """
    best = list(items)
    chunk = max(1, len(best) // 2)
    while budget > 0:
        at, removed = 0, False
        while at < len(best) and budget > 0:
            trial = best[:at] + best[at + chunk :]
            budget -= 1
            if trial and await fails(trial):
                best, removed = trial, True
            else:
                at += chunk
        if chunk == 1 and not removed:
            break
        chunk = max(1, chunk // 2)
    return best


async def blank(data: bytes, fails: Callable[[bytes], Awaitable[bool]], filler: int = 0x90, budget: int = 200) -> bytes:
    """Replace as much of ``data`` by ``filler`` (NOP) as leaves ``fails`` true; what matters remains."""
    best, chunk = data, 16
    while chunk and budget > 0:
        for at in range(0, len(best), chunk):
            piece = best[at : at + chunk]
            trial = best[:at] + bytes([filler]) * len(piece) + best[at + chunk :]
            if trial == best or budget <= 0:
                continue
            budget -= 1
            if await fails(trial):
                best = trial
        chunk //= 2
    return best
