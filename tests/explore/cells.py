"""Cells of the shipped code that several tests look at: each is decided once a process."""

from functools import cache

from kickstand.explore.matrix import explore


@cache
def decided(scenario, variant, behaviour, vcpus=1, vmms=1, memory="sc"):
    """Every property's verdict. Not for tests that change the code."""
    found = explore(scenario, variant, behaviour, vcpus, vmms, memory=memory)
    return {verdict.property: verdict for verdict in found}


def fallen(*cell):
    """The properties that are violated."""
    return {name for name, verdict in decided(*cell).items() if verdict.verdict == "violated"}
