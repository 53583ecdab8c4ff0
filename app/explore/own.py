"""What a file with a protocol of one's own is written with: ``kickstand explore FILE.py`` (docs/models.md)."""

from kickstand.core.atomics import Shared, atomic, blocked, choose
from kickstand.explore.world.own import Mutex, eventually, never, rest, thread

__all__ = ["Mutex", "Shared", "atomic", "blocked", "choose", "eventually", "never", "rest", "thread"]
