"""A story of questions: state is set and read back, and between the questions guests run that look at it.

Both sides have the same CPUID table, else each would tell of its host.
"""

from __future__ import annotations

from random import Random

from kickstand.scripts.differential.asks import asked
from kickstand.scripts.differential.asks.model import set_cpuid, table
from kickstand.scripts.differential.barrage import Barrage
from kickstand.scripts.differential.story import Steps, op


class Interview(Barrage):
    """One VM; vCPU 0 runs guests, vCPU 1 (if there is one) is only asked."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.irqchip = random.random() < 0.3  # noqa: PLR2004
        self.vcpus = random.choice((1, 1, 2))
        self.systems = 0.7

    def play(self) -> Steps:
        yield from self.set_up()
        for _ in range(self.random.randrange(10, 30)):
            yield from self.question()
            if not self.irqchip and self.encoder.chance(0.3) and not (yield from self.round()):
                break
        yield op("hash_host", arena="A")

    def create(self) -> Steps:
        """Where HLT does not leave KVM_RUN, nobody runs."""
        if self.irqchip:
            yield op("create_irqchip")
        for vcpu in range(self.vcpus):
            yield op("create_vcpu", id=vcpu)
            yield set_cpuid(table(self.random), vcpu)

    def question(self) -> Steps:
        """Of the VM or of a vCPU."""
        vcpu = self.random.choice((None, *range(self.vcpus), *range(self.vcpus)))
        yield from asked(self.random, vcpu, irqchip=self.irqchip)
