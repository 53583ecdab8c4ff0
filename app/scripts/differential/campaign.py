"""Many seeds, one after the other, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kickstand.scripts.differential.both import Differential, Finding
from kickstand.scripts.differential.mutate import Mutations


@dataclass(slots=True)
class Report:
    """What a campaign came to."""

    scripts: int = 0
    operations: int = 0
    spun: list[int] = field(default_factory=list)
    spun_alone: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def unexplained(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.quirk is None]


async def campaign(
    seeds: Sequence[int],
    stop_after: int = 10,
    progress: Callable[[Report], None] | None = None,
    mutations: Mutations | None = None,
) -> Report:
    """Play every seed; end early after ``stop_after`` unexplained differences."""
    both, report = Differential(mutations=mutations), Report()
    for seed in seeds:
        operations, finding = await both.run(seed)
        report.scripts += 1
        report.operations += operations
        report.spun, report.spun_alone = both.spun, both.spun_alone
        if finding is not None:
            report.findings.append(finding)
        if progress is not None:
            progress(report)
        if len(report.unexplained) >= stop_after:
            break
    return report
