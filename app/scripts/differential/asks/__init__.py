"""Questions: ioctls that both sides must take or refuse alike, and whose effect both must show alike.

``asked`` is one question about a VM or about a vCPU that is not inside an access.
"""

from __future__ import annotations

from random import Random

from kickstand.scripts.differential.asks import model, state
from kickstand.scripts.differential.asks.chips import of_chips
from kickstand.scripts.differential.asks.of_vm import of_vm
from kickstand.scripts.differential.story import Steps

OF_VCPU = (*model.QUESTIONS, *state.QUESTIONS)


def asked(random: Random, vcpu: int | None, *, irqchip: bool = False) -> Steps:
    """One question. ``irqchip``: the VM has one in the kernel."""
    if vcpu is not None:
        yield from random.choice(OF_VCPU)(random, vcpu)
    elif irqchip and random.random() < 0.5:  # noqa: PLR2004  a coin
        yield from of_chips(random)
    else:
        yield from of_vm(random)
