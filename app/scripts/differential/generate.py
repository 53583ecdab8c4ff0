"""Scripts from a seed: slots, dirty log, guest code and kicks, each step chosen after the answer to the last.

``steps`` is a coroutine of operations: it yields one and is sent its answer, so that a device's reply has the
length that the access asks for. Whoever drives it decides on which machine it plays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from random import Random
from typing import Any

from kickstand.scripts.differential.asks import asked
from kickstand.scripts.differential.barrage import Barrage
from kickstand.scripts.differential.code.encodings import (
    END_PORT,
    HLT,
    MODES,
    PAGE,
    SAY_SO,
    SPIN,
    WINDOW,
    WINDOW_PAGES,
    program,
)
from kickstand.scripts.differential.interview import Interview
from kickstand.scripts.differential.story import CODE, LOW_SIZE, STACK, Answer, Op, Steps, arenas, due, op

CODE_STEP = 0x400
CODES = 8  # places for programs, for each vCPU
SLOTS = range(1, 7)
KICK_MS = 10  # also when another guest spins on a busy machine
STORIES = (3, 5, 4)  # of twelve scripts: slots and kicks, instructions, questions


def steps(seed: int) -> Steps:
    """One script. The same seed and the same answers give the same script."""
    random = Random(seed)
    story = random.choices((_Script, Barrage, Interview), STORIES)[0](random)
    yield from story.play()


class _Script:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.mode = random.choice(MODES)
        self.vcpus = 2 if random.random() < 0.3 else 1  # noqa: PLR2004
        self.irqchip = random.random() < 0.15  # noqa: PLR2004
        self.spinning: set[int] = set()
        self.dead: set[int] = set()
        self.last: dict[int, Answer] = {}  # the answer to the last run of each vCPU

    # -- the story -------------------------------------------------------------------------------------------

    def play(self) -> Steps:
        yield from self.set_up()
        for _ in range(self.random.randrange(8, 28)):
            yield from self.random.choices(*_weighted(self.choices()))[0]()
        for vcpu in sorted(self.spinning):
            yield op("signal", vcpu=vcpu)
            yield op("finish_run", vcpu=vcpu)
        yield op("hash_host", arena="A")
        yield op("hash_host", arena="B")

    def choices(self) -> dict[Callable[[], Steps], int]:
        """What may come next, with weights."""
        free = [vcpu for vcpu in range(self.vcpus) if vcpu not in self.spinning | self.dead]
        always: dict[Callable[[], Steps], int] = {
            self.slot: 5, self.delete: 2, self.dirty: 3, self.clear_dirty: 1, self.host_write: 1, self.transaction: 1,
            self.kick: 1, lambda: asked(self.random, None): 1,
        }  # fmt: skip
        if not free:
            return always
        vcpu = self.random.choice(free)
        runs: dict[Callable[[], Steps], int] = {
            lambda: self.run(vcpu): 14, lambda: self.leave_at_once(vcpu): 1, lambda: self.registers(vcpu): 1,
            lambda: self.spin_and_signal(vcpu): 1, lambda: self.spin_beside(vcpu): 1, lambda: self.ask(vcpu): 1,
        }  # fmt: skip
        return always | runs

    def set_up(self) -> Steps:
        yield from arenas(self.mode)
        yield op(
            "set_memory_region",
            slot=0,
            flags=self.random.choice((0, 0, 1)),
            gpa=0,
            size=LOW_SIZE,
            host={"arena": "A", "offset": 0},
        )
        for _ in range(self.random.randrange(1, 4)):
            yield from self.slot()
        if self.irqchip:
            yield op("create_irqchip")
        for vcpu in range(self.vcpus):
            yield op("create_vcpu", id=vcpu)
            yield op("set_cpuid_supported", vcpu=vcpu)
            if self.irqchip and vcpu:
                yield op("set_mp_state", vcpu=vcpu, mp_state="RUNNABLE")
            yield op("set_sregs", vcpu=vcpu, preset=self.mode)
            yield from self.load(vcpu, self.end(), fresh=True)

    # -- memory ----------------------------------------------------------------------------------------------

    def region(self) -> dict[str, Any]:
        """A slot of the window; now and then one that the kernel must refuse."""
        choose = self.random
        page, pages = choose.randrange(WINDOW_PAGES), choose.choice((1, 1, 2, 3, 4))
        odd = choose.random() < 0.05  # noqa: PLR2004
        return {
            "slot": choose.choice(SLOTS),
            "flags": choose.choice((0, 0, 1, 1, 2, 3)) if not odd else choose.choice((4, 8, 0)),
            "gpa": WINDOW + page * PAGE + (odd and choose.choice((0, 1, 0x800))),
            "size": min(pages, WINDOW_PAGES - page) * PAGE + (odd and choose.choice((0, 1))),
            "host": {"arena": "B", "offset": choose.randrange(WINDOW_PAGES - pages) * PAGE},
        }

    def slot(self) -> Steps:
        yield op("set_memory_region", **self.region())

    def gone(self) -> dict[str, Any]:
        return {"slot": self.random.choice(SLOTS), "flags": 0, "gpa": 0, "size": 0, "host": {"abs": 0}}

    def delete(self) -> Steps:
        yield op("set_memory_region", **self.gone())

    def transaction(self) -> Steps:
        regions = [self.region() if self.random.random() < 0.6 else self.gone() for _ in range(3)]  # noqa: PLR2004
        yield op("memory_transaction", operations=regions, protect=self.random.choice(("kick", "none")))

    def dirty(self) -> Steps:
        yield op("get_dirty_log", slot=self.random.choice((0, *SLOTS)), buffer_pages=WINDOW_PAGES)

    def clear_dirty(self) -> Steps:
        pages = self.random.choice((1, 2, 3, 4, 16, 64))
        bits = sorted(self.random.sample(range(pages), self.random.randrange(min(pages, 4))))
        first = self.random.choice((0, 0, 0, 64, 1))
        yield op("clear_dirty_log", slot=self.random.choice((0, *SLOTS)), first_page=first, num_pages=pages, bits=bits)

    def host_write(self) -> Steps:
        data = self.random.randbytes(16)
        yield op("write_host", arena="B", offset=self.random.randrange(WINDOW_PAGES * PAGE - 16), hex=data.hex())

    # -- guests ----------------------------------------------------------------------------------------------

    def load(self, vcpu: int, end: bytes, *, length: int | None = None, fresh: bool = False) -> Steps:
        """Write a program, perhaps over an old one, and go there."""
        count = self.random.randrange(1, 14) if length is None else length
        code = program(self.mode, self.random, count, end)
        at = CODE + (CODES * vcpu + self.random.randrange(CODES)) * CODE_STEP
        yield op("write_host", arena="A", offset=at, hex=code.hex())
        regs = {"rip": at, "rsp": STACK - 0x100 * vcpu, "rflags": 2}
        if fresh:
            yield op("set_regs", vcpu=vcpu, regs=regs)
        else:
            yield op("change_regs", vcpu=vcpu, regs=regs)

    def pending(self, vcpu: int) -> int | None:
        """How many bytes this vCPU waits for."""
        return due(self.last.get(vcpu, {}))

    def run(self, vcpu: int) -> Steps:
        """KVM_RUN, with the device's answer if one is due."""
        args: dict[str, Any] = {"vcpu": vcpu}
        wanted = self.pending(vcpu)
        if wanted and self.random.random() < 0.95:  # noqa: PLR2004
            args["reply"] = self.random.randbytes(wanted).hex()
        yield from self.ran(vcpu, (yield op("run", **args)))

    def end(self) -> bytes:
        """How a program ends: with an in-kernel irqchip HLT does not leave KVM_RUN."""
        return SAY_SO + HLT if self.irqchip else HLT

    def ran(self, vcpu: int, answer: Answer) -> Steps:
        self.last[vcpu] = answer
        reason = answer.get("exit_reason")
        if answer.get("port") == END_PORT:
            yield from self.leave_at_once(vcpu)
            yield from self.load(vcpu, self.end())
        elif answer.get("ret") == 0 and reason in ("SHUTDOWN", "INTERNAL_ERROR"):
            self.dead.add(vcpu)
        elif reason == "HLT" or answer.get("errno") == "EINTR":
            yield op("get_regs", vcpu=vcpu)
            yield from self.wake(vcpu)
            yield from self.load(vcpu, self.end())

    def wake(self, vcpu: int) -> Steps:
        """A vCPU that sleeps in HLT is set going again from outside."""
        if self.irqchip:
            yield op("get_mp_state", vcpu=vcpu)
            yield op("set_mp_state", vcpu=vcpu, mp_state="RUNNABLE")

    def leave_at_once(self, vcpu: int) -> Steps:
        """``immediate_exit``: what is pending is completed, then EINTR."""
        args: dict[str, Any] = {"vcpu": vcpu}
        if wanted := self.pending(vcpu):
            args["reply"] = self.random.randbytes(wanted).hex()
        yield op("set_run_flag", vcpu=vcpu, flag="immediate_exit", value=1)
        answer = yield op("run", **args)
        yield op("set_run_flag", vcpu=vcpu, flag="immediate_exit", value=0)
        self.last[vcpu] = answer
        if answer.get("errno") == "EINTR":
            yield op("get_regs", vcpu=vcpu)

    def registers(self, vcpu: int) -> Steps:
        """Outside an access registers are well-defined."""
        if self.pending(vcpu) is None:
            values = {name: self.random.getrandbits(32) for name in ("rax", "rcx", "rdx", "rbp")}
            yield op("change_regs", vcpu=vcpu, regs=values)
            yield op("get_regs", vcpu=vcpu)

    def ask(self, vcpu: int) -> Steps:
        """Of a vCPU that waits for nothing."""
        if self.pending(vcpu) is None:
            yield from asked(self.random, vcpu)

    # -- kicks -----------------------------------------------------------------------------------------------

    def at_the_end(self, vcpu: int, end: bytes) -> Generator[Op, Answer, bool]:
        """Bring an idle vCPU to where only ``end`` is left; it has shown that it runs."""
        if self.pending(vcpu) is not None:
            return False
        yield from self.load(vcpu, SAY_SO + end, length=0)
        answer = yield op("run", vcpu=vcpu)
        return answer.get("port") == END_PORT

    def spin_and_signal(self, vcpu: int) -> Steps:
        if (yield from self.at_the_end(vcpu, self.random.choice((SPIN, HLT if self.irqchip else SPIN)))):
            yield from self.ran(vcpu, (yield op("run", vcpu=vcpu, kick_after_ms=KICK_MS)))

    def spin_beside(self, vcpu: int) -> Steps:
        """A guest that spins while other operations go on."""
        if (yield from self.at_the_end(vcpu, SPIN)):
            yield op("start_run", vcpu=vcpu)
            self.spinning.add(vcpu)

    def kick(self) -> Steps:
        """The two proposed ioctls around slot changes; who was spinning has left."""
        yield op("kick")
        for vcpu in sorted(self.spinning):
            yield from self.ran(vcpu, (yield op("finish_run", vcpu=vcpu)))
        self.spinning.clear()
        yield from self.slot()
        yield from self.delete()
        yield op("resume")


def _weighted(choices: Mapping[Callable[[], Steps], int]) -> tuple[list[Callable[[], Steps]], list[int]]:
    return list(choices), list(choices.values())
