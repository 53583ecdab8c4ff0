"""Where host memory lies in the engine.

Unicorn's own page walk takes physical addresses below 1 TiB only. Mappings of a process lie close together, so a
window of that size over them begins at the engine's address 0; what lies outside is at ``_ELSEWHERE`` and
beyond. All of it is mapped in an engine once: every byte has one address there, and so its code has one translation.
"""

from __future__ import annotations

import mmap

from kickstand.guests.mapping import address_of

PAGE = 4096
SIZE = 1 << 40
_ELSEWHERE = 1 << 47
_USER_SPACE = 1 << 47
_ABOVE = 1 << 36  # room in the window above the newest mapping: the next ones come below
_GIB = 1 << 30


def _begin() -> int:
    with mmap.mmap(-1, PAGE) as page:
        end = min(address_of(page) + _ABOVE, _USER_SPACE)
    return max(-(-end // _GIB) * _GIB - SIZE, 0)


START = _begin()
"""The host address at the engine's address 0."""
BLOCKS = tuple(
    (engine, host, size)
    for engine, host, size in (
        (0, START, min(SIZE, _USER_SPACE - PAGE - START)),
        (_ELSEWHERE + PAGE, PAGE, START - PAGE),
        (_ELSEWHERE + START + SIZE, START + SIZE, _USER_SPACE - PAGE - START - SIZE),
    )
    if size > 0
)
"""(engine address, host address, size) of what an engine maps."""


def in_window(host: int, size: int = 1) -> bool:
    """True if the engine's own page walk can reach these bytes."""
    return host >= START and host + size <= START + SIZE


def engine_address(host: int) -> int:
    """The engine's address of a host address."""
    return host - START if in_window(host) else _ELSEWHERE + host


def host_address(engine: int) -> int:
    """The host address of an engine's."""
    return engine + START if engine < SIZE else engine - _ELSEWHERE
