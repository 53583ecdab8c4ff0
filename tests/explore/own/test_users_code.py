"""A user's variant: what cannot be explored is refused with a sentence, what it asserts is a property."""

import re

import pytest

from kickstand.explore.learn.plain import PlainStateError
from kickstand.explore.matrix import explore, replay_token

pytestmark = pytest.mark.slow
HEAD = '''from kickstand.core.atomics import Shared, atomic, blocked
from kickstand.core.variants.sticky import Sticky


class Count(Shared):
    __slots__ = ("n",)
    FIELDS = ("n",)

    def __init__(self):
        super().__init__()
        self.n = 0

    @atomic
    async def add(self):
        self.n = min(self.n + 1, 2)
        return self.n

    @atomic
    async def fails(self):
        raise LookupError("no such thing")


class Mine(Sticky):
    """A variant of one's own."""

'''


@pytest.fixture
def mine(tmp_path):
    def explored(body, *properties, vcpus=1):
        file = tmp_path / "mine.py"
        file.write_text(HEAD + body)
        return explore("merge", "mine", "careless", vcpus, properties=properties, variant_module=str(file))

    return explored


PLAIN = {
    "an attribute that is set": (
        "    async def kick(self, task):\n        self.closed = True\n        return await super().kick(task)\n",
        "mine.closed is set to True while threads run",
    ),
    "a list that grows": (
        (
            "    def __init__(self, vm):\n        super().__init__(vm)\n        self.seen = []\n\n"
            "    async def kick(self, task):\n        self.seen.append(1)\n        return await super().kick(task)\n"
        ),
        r"mine.seen was \[\] and is",
    ),
    "an attribute of a vCPU": (
        "    async def run_begin(self, vcpu):\n        vcpu.mark = 1\n        return await super().run_begin(vcpu)\n",
        "vcpu 0.mark is set to 1",
    ),
    "an object that is shared late": (
        (
            "    async def run_begin(self, vcpu):\n        self.vm.share(Count())\n"
            "        return await super().run_begin(vcpu)\n"
        ),
        r"vm.share\(Count\(\)\) while threads run: share in __init__, or for each vCPU in init_vcpu",
    ),
}


@pytest.mark.parametrize("what", PLAIN)
def test_plain_state_is_refused_with_what_to_do_instead(mine, what):
    body, complaint = PLAIN[what]
    with pytest.raises(PlainStateError, match=complaint):
        mine(body, "deadlock")


WRONG = {
    "a misspelt hook": ("    async def exit_tests(self, vcpu):\n        return False\n", "did you mean exit_test?"),
    "a hook that takes less": (
        "    async def entry_test(self):\n        return False\n",
        r"entry_test\(self\) is called as entry_test\(self, vcpu\)",
    ),
    "a hook that is not async": ("    def kick(self, task):\n        return True\n", "write async def kick"),
}


@pytest.mark.parametrize("what", WRONG)
def test_hooks_that_are_none_are_refused_by_name(mine, what):
    body, complaint = WRONG[what]
    with pytest.raises(ValueError, match=complaint):
        mine(body)


def test_a_helper_of_ones_own_is_no_misspelt_hook(mine):
    (found,) = mine("    async def my_wait(self, task):\n        return None\n", "deadlock")
    assert found.verdict == "holds"


def test_each_vcpu_may_have_an_object_of_its_own(mine):
    (found,) = mine(
        "    def __init__(self, vm):\n        super().__init__(vm)\n        self.counts = {}\n\n"
        "    def init_vcpu(self, vcpu):\n        self.counts[vcpu.id] = self.vm.share(Count())\n\n"
        "    async def run_begin(self, vcpu):\n        await self.counts[vcpu.id].add()\n"
        "        return await super().run_begin(vcpu)\n",
        "deadlock",
        vcpus=2,
    )
    assert found.verdict == "holds"


RAISES = {
    "an assertion": ("assert not r, 'kicked'", "AssertionError: kicked, .*mine.py:[0-9]+ in exit_test"),
    "an exception": ("{}[r]", "KeyError: (True|False), .*mine.py:[0-9]+ in exit_test"),
    "an operation that raises": ("await self.count.fails()", "LookupError: no such thing, .*mine.py:[0-9]+ in fails"),
}


@pytest.mark.parametrize("what", RAISES)
def test_what_a_variant_raises_is_told_unasked_in_columns_and_replays(mine, what):
    line, said = RAISES[what]
    deadlock, raised = mine(
        "    def __init__(self, vm):\n        super().__init__(vm)\n        self.count = vm.share(Count())\n\n"
        "    async def exit_test(self, vcpu):\n        r = await super().exit_test(vcpu)\n"
        f"        {line}\n        return r\n",
        "deadlock",
    )
    assert deadlock.property == "deadlock"
    assert (raised.property, raised.verdict) == ("assertion", "violated")
    text = " ".join(raised.counterexample.text().split())

    assert re.search(said, text)
    replay_token(raised.counterexample.token)
