"""A protocol of one's own: found, replayed, cured by one line; what cannot be explored is refused with a sentence."""

import re
from pathlib import Path

import pytest

from kickstand.explore.command import Options, Refused, replay_one, run
from kickstand.explore.evidence.tokens import TokenError
from kickstand.explore.matrix import Matrix, replay_token
from kickstand.explore.question import Question

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
MODELS = ROOT / "examples" / "models"
EXAMPLES = {  # what falls, and the line that cures it
    "pause_deadlock": ({"deadlock", "eventually.everybody_paused"}, "DEVICE_FIRST = True", "DEVICE_FIRST = False"),
    "lockcnt": ({"eventually.inhibited"}, "HOLD_BACK = False", "HOLD_BACK = True"),
    "dirty_ring": (
        {"never.a_change_nobody_will_be_told_of"},
        "RESET_BEFORE_COPY = False",
        "RESET_BEFORE_COPY = True",
    ),
    "irqfd": ({"assertion"}, "FLUSH = False", "FLUSH = True"),
}
HEAD = """from kickstand.explore.own import Mutex, Shared, atomic, blocked, choose, eventually, never, rest, thread


class Box(Shared):
    full = False

    @atomic
    async def put(self):
        self.full = True
        self.changed()

    @atomic
    async def forget(self):
        self.full = True

    @atomic
    async def take(self):
        while not self.full:
            await blocked(self)
        self.full = False


box, other = Box(), Box()
"""
PUTS = "@thread\nasync def one():\n    await box.put()\n\n\n"
WAITS = "@thread\nasync def waits():\n    await box.take()\n\n\n"
GOES = "@thread\nasync def goes():\n    while True:\n        await other.put()\n"
NOSY = "class Nosy(Shared):\n    @atomic\n    async def look(self):\n        %s\n\n\nnosy = Nosy()\n\n\n"
LOOKS = "@thread\nasync def one():\n    await nosy.look()\n"
BAG = "class Bag(Shared):\n    def __init__(self):\n        %s\n        self.things = []\n\n\nbag = Bag()\n\n\n"


@pytest.fixture
def model(tmp_path):
    def explored(text, *properties):
        file = tmp_path / "mine.py"
        file.write_text(HEAD + text)
        return {item.property: item for item in Matrix(Question(str(file), properties=properties)).run()}

    return explored


def fallen(verdicts):
    return {item.property for item in verdicts if item.verdict == "violated"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_falls_replays_and_is_cured_by_one_line(name, tmp_path):
    expected, wrong, right = EXAMPLES[name]
    verdicts = Matrix(Question(str(MODELS / f"{name}.py"))).run()
    assert fallen(verdicts) == expected
    for verdict in verdicts:
        if verdict.counterexample is not None:
            replay_token(verdict.counterexample.token, str(MODELS / f"{name}.py"))
    text = (MODELS / f"{name}.py").read_text()
    assert wrong in text
    cured = tmp_path / f"{name}.py"
    cured.write_text(text.replace(wrong, right))
    assert {item.verdict for item in Matrix(Question(str(cured))).run()} == {"holds"}


def test_the_page_is_true_step_by_step(tmp_path):
    [text] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    file = tmp_path / "pause.py"
    file.write_text(text)
    with pytest.raises(Refused, match=r"cpu\.look waits after it has changed cpu"):
        run(Options(Question(str(file))))
    text = text.replace("    async def look(self):\n", "    async def acknowledge(self):\n").replace(
        "        while self.paused:\n",
        "\n    @atomic\n    async def wait_resumed(self):\n        while self.paused:\n",
    )
    file.write_text(text.replace("await cpu.look()", "await cpu.acknowledge()\n        await cpu.wait_resumed()"))
    assert fallen(Matrix(Question(str(file))).run()) == {"deadlock", "eventually.vcpu_paused"}
    text = file.read_text()
    moved = text.replace(
        "    await device.pause()\n    await cpu.pause()\n    await cpu.wait_paused()\n",
        "    await cpu.pause()\n    await cpu.wait_paused()\n    await device.pause()\n",
    )
    assert moved != text
    file.write_text(moved)
    assert fallen(Matrix(Question(str(file))).run()) == set()


def test_a_statement_that_is_never_true_is_shown_where_it_becomes_so(model):
    verdicts = model(
        "@thread\nasync def one():\n    await box.put()\n\n\n@thread\nasync def two():\n    await other.put()\n\n\n"
        "@never\ndef both():\n    return box.full and other.full\n"
    )
    found = verdicts["never.both"]
    assert found.verdict == "violated"
    assert found.counterexample.trail.steps == 2


def test_a_statement_that_is_true_from_the_start_needs_no_step(model):
    verdicts = model(
        "@thread\nasync def one():\n    await box.put()\n\n\n@never\ndef empty():\n    return not box.full\n"
    )
    assert verdicts["never.empty"].verdict == "violated"
    assert verdicts["never.empty"].counterexample.trail.steps == 0


def test_a_thread_left_behind_is_a_deadlock_though_others_go_round(model):
    threads = WAITS + GOES
    found = model(threads)["deadlock"]
    assert found.verdict == "violated"
    assert "waits waits, and nothing can let it go on any more" in found.counterexample.text()
    assert (
        model(threads.replace("@thread\nasync def waits", "@rest\n@thread\nasync def waits"))["deadlock"].verdict
        == "holds"
    )


def test_where_the_file_says_so_waiting_is_no_deadlock(model):
    threads = WAITS.replace("await box.take()", "await box.take()\n    await box.take()") + PUTS
    assert model(threads)["deadlock"].verdict == "violated"
    assert model(threads + "@rest\ndef empty():\n    return not box.full\n")["deadlock"].verdict == "holds"


def test_a_wakeup_that_is_forgotten_is_told_unasked(model):
    threads = (
        "@thread\nasync def waits():\n    await box.take()\n\n\n@thread\nasync def one():\n    await box.forget()\n"
    )
    assert model(threads, "deadlock")["lost_wakeup"].verdict == "violated"


def test_several_threads_of_one_kind_share_a_lock(model):
    work = ("await lock.lock(me)", "await box.put()", "await box.take()", "await lock.unlock()")
    body = "\n    ".join(work)
    text = f"lock = Mutex()\n\n\nasync def work(me):\n    {body}\n\n\n"
    verdicts = model(text + "for name in ('A', 'B', 'C'):\n    thread(work, name, name=name)\n")
    assert {item.verdict for item in verdicts.values()} == {"holds"}


ALONE = {  # a thread that nobody meets: its body, what falls, and after how many steps
    "it fails before it does anything": ("assert False", "assertion", 0),
    "it fails at its only operation": ("await nosy.look()", "assertion", 1),
    "it fails after an operation": ("await other.put()\n    assert False", "assertion", 1),
    "it fails where it makes a choice": ("if await choose(2):\n        raise ValueError", "assertion", 0),
    "it gives back what it has not": ("await lock.unlock()", "balance", 1),
    "it gives back twice": ("await lock.lock('x')\n    await lock.unlock()\n    await lock.unlock()", "balance", 3),
    "it ends with a lock": ("await lock.lock('x')", "balance", 1),
    "it locks twice": ("await lock.lock('x')\n    await lock.lock('x')", "assertion", 2),
}


@pytest.mark.parametrize("beside", ["", PUTS], ids=["alone", "beside another"])
@pytest.mark.parametrize("what", ALONE)
def test_what_a_thread_does_that_nobody_meets_is_looked_at_too(model, what, beside):
    body, prop, steps = ALONE[what]
    nosy = NOSY % "assert False, 'no'"
    verdicts = model(f"lock = Mutex()\n\n\n{nosy}{beside}@thread\nasync def mine():\n    {body}\n")
    assert fallen(verdicts.values()) == {prop}
    found = verdicts[prop].counterexample
    assert found.trail.steps == steps
    assert prop == "balance" or "mine: " in found.verdict


def test_two_threads_that_lock_under_one_name_are_told_so(model):
    """Else each would pass for the other, and their deadlock be none."""
    locks = "    await {0}.lock('me')\n    await {1}.lock('me')\n    await {1}.unlock()\n    await {0}.unlock()\n"
    threads = "".join(f"@thread\nasync def {a}{b}():\n{locks.format(a, b)}\n\n" for a, b in ("ab", "ba"))
    found = model(f"a, b = Mutex(), Mutex()\n\n\n{threads}")["assertion"]
    assert "'me' has this Mutex already" in found.counterexample.verdict
    assert "mine.py" in found.counterexample.verdict


def test_who_dies_with_a_lock_is_told_what_he_died_of(model):
    text = "lock = Mutex()\n\n\n@thread\nasync def one():\n    await lock.lock('x')\n    await box.tkae()\n\n\n"
    verdicts = model(text + WAITS.replace("waits", "two"), "assertion", "balance")
    assert fallen(verdicts.values()) == {"assertion"}
    assert "no attribute 'tkae'" in verdicts["assertion"].counterexample.verdict


WRONG = {
    "no thread": ("", "there is no thread"),
    "a thread that is no coroutine": ("@thread\ndef one():\n    pass\n", "thread one: write async def one"),
    "two of one name": (
        "async def work():\n    await box.put()\n\n\nthread(work)\nthread(work)\n",
        "two threads are called work",
    ),
    "a statement that awaits": (
        "@thread\nasync def one():\n    await box.put()\n\n\n@never\nasync def x():\n    return True\n",
        "x is a statement: write def",
    ),
    "a global that is set": (
        "n = 0\n\n\n@thread\nasync def one():\n    global n\n    n = 1\n    await box.put()\n",
        "one sets the global n",
    ),
    "a list that grows": (
        "seen = []\n\n\n@thread\nasync def one():\n    await box.put()\n    seen.append(1)\n",
        "seen changes while threads run",
    ),
    "a state that is read in passing": (
        "@thread\nasync def one():\n    if box.full:\n        await box.put()\n",
        "Box.full is read outside an operation",
    ),
    "an operation that looks at another object": (NOSY % "return box.full" + LOOKS, "Box.full is read outside"),
    "an operation that awaits another": (NOSY % "await box.put()" + LOOKS, "is @atomic and awaits something"),
    "a value that can change": (BAG % "super().__init__()" + PUTS, "bag.things is no value: use a tuple"),
    "no call of super": (BAG % "pass" + PUTS, "does not call super"),
    "a syntax error": ("def (:\n", "invalid syntax|expected"),
    "an error at the top": ("x = 1 / 0\n", r"ZeroDivisionError: division by zero \(line 24\)"),
    "a thread that sleeps": (
        "import asyncio\n\n\n@thread\nasync def one():\n    await asyncio.sleep(0)\n",
        "no place in a closed world",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_explored_is_refused_with_a_sentence(tmp_path, what):
    text, complaint = WRONG[what]
    file = tmp_path / "mine.py"
    file.write_text(HEAD + text)
    with pytest.raises(Refused, match=complaint):
        run(Options(Question(str(file))))


def test_an_unknown_property_and_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        run(Options(Question(str(tmp_path / "none.py"))))
    with pytest.raises(Refused, match="has no property 'kick_returns'"):
        run(Options(Question(str(MODELS / "irqfd.py"), properties=("kick_returns",))))


def test_a_token_carries_no_code_and_wants_its_file(tmp_path):
    file = tmp_path / "irqfd.py"
    file.write_text((MODELS / "irqfd.py").read_text())
    (found,) = (item for item in Matrix(Question(str(file))).run() if item.counterexample)
    token = found.counterexample.token
    assert len(token) < 120
    with pytest.raises(TokenError, match=r"about irqfd.py: name that file too"):
        replay_token(token)
    assert replay_one(token, model=str(file)) == 1
    file.write_text(file.read_text().replace("await irqfd.unhook()", "await irqfd.free()\n    await irqfd.unhook()"))
    with pytest.raises(TokenError, match="changed since"):
        replay_token(token, str(file))
