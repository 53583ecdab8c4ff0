"""What the program asked for, by count, and what it asked for that is not here."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kickstand.core.errors import errno_name


class Summary:
    """Counts one program's ioctls and exits."""

    def __init__(self) -> None:
        self.ioctls: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.troubles: Counter[str] = Counter()
        self._drains_ns: list[int] = []
        self._kicked: Counter[bool] = Counter()

    def ioctl(self, name: str) -> None:
        """An ioctl was issued."""
        self.ioctls[name] += 1

    def again(self, name: str) -> None:
        """It will come once more: the program was made to issue it again."""
        self.ioctls[name] -= 1

    def left(self, reason: str, failed: int) -> None:
        """KVM_RUN has left, with an exit or an errno."""
        self.exits[errno_name(failed) if failed else reason] += 1

    def window(self, drain_ns: int) -> None:
        """A transaction was protected: its vCPUs were out of the guest after so long."""
        self._drains_ns.append(drain_ns)

    def kicked(self, *, closed: bool) -> None:
        """KVM_RUN answered EINTR because of one; ``closed``: it had begun when the guest was closed already."""
        self._kicked[closed] += 1

    def unknown(self, kind: str, name: str) -> None:
        """A descriptor was asked for an ioctl that is not here."""
        self.missing[f"{kind}: {name}"] += 1

    def trouble(self, sentence: str) -> None:
        """Something could not be done as it should."""
        self.troubles[sentence] += 1

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "ioctls": dict(self.ioctls.most_common()),
            "exits": dict(self.exits.most_common()),
            "protection": self._protection(),
            "missing": dict(self.missing.most_common()),
            "troubles": dict(self.troubles.most_common()),
        }

    def _protection(self) -> dict[str, int]:
        if not self._drains_ns:
            return {}
        from statistics import median  # noqa: PLC0415  takes longer to load than many a program runs

        return {
            "transactions": len(self._drains_ns),
            "drain_ns_median": round(median(self._drains_ns)),
            "drain_ns_max": max(self._drains_ns),
            "kicked_out": self._kicked[False],
            "eintr_while_closed": self._kicked[True],
        }

    def lines(self) -> list[str]:
        """For a person."""
        lines: list[str] = []
        for title, counts in self.as_json().items():
            if counts:
                lines.append(f"{title}:")
                lines += [f"  {count:>9,}  {name}" for name, count in counts.items()]
        return lines
