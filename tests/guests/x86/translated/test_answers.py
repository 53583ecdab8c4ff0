"""Exits that the kernel answers at once: what others rewrite meanwhile is seen soon, and what userspace does always."""

import pytest

from kickstand.core.run.exits import HltExit, MsrExit
from tests.guests.x86.machine import ENTRY, Machine, engines

READ = MsrExit(0x808, is_write=False)
ASKING = "b908080000 0f32 ebf7"  # mov ecx, the APIC's TPR; rdmsr; again
ANSWER = bytes(9)
MOST = 16


@pytest.fixture
def asking(engine):
    """A guest that has left for the kernel's APIC. Behind it somebody puts HLT."""
    machine = Machine("prot32", ASKING, engine=engine)
    machine.cpu.answer_apic_msrs()
    assert machine.run() == READ
    assert machine.run(ANSWER) == READ
    machine.poke(ENTRY + 7, "f4")
    return machine


def asks(machine, *, by_kernel):
    """How often it asks until it has come to the HLT."""
    for asked in range(10 * MOST):
        assert machine.cpu.complete(ANSWER, by_kernel=by_kernel) is None
        exit = machine.run()
        if exit == HltExit():
            return asked
        assert exit == READ
    return None


@engines
def test_what_userspace_has_answered_goes_on_with_code_as_it_is(asking):
    assert asks(asking, by_kernel=False) == 0


@engines
def test_after_some_answers_of_the_kernels_code_is_as_it_is(asking):
    assert 0 < asks(asking, by_kernel=True) <= MOST


@engines
def test_with_an_interrupt_code_is_as_it_is(asking):
    assert asking.cpu.complete(ANSWER, by_kernel=True) is None
    assert asking.cpu.goes_on
    asking.cpu.interrupt(0x20)
    assert not asking.cpu.goes_on
