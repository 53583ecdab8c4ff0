"""Does the page keep up? A thousand vCPUs, 20 batches a second, 20,000 changes of state a second.

A real server sends the events; a headless Chromium, drawing in software, shows them. Frames are held against those
of an empty page, measured in turn, since a busy machine slows both. Heap: after a collection, at the end of each round.

    python benchmarks/dashboard.py [--seconds 600] [--views vcpus,timeline] [--json]
"""

import argparse
import asyncio
import gzip
import random
import sys
import threading
from pathlib import Path

from harness import at_least, at_most, judged, measured, report, skipped

sys.path.insert(0, str(Path(__file__).parents[1]))

from kickstand.core.trace import VcpuState
from kickstand.main import Server, bind, create_app
from kickstand.settings import Limits, Settings
from tests.browser.browser import browsing, missing, serving, until

ROOT = Path(__file__).parents[1]
VCPUS = 1_000  # of one VM; KVM has at most 1,024
MANY = 10  # VMs, so ten thousand vCPUs
BATCHES = 20  # a second
CHANGES = 1_000  # in a batch
SETTLE_MS = 1_500
ROUNDS = 5
FLOOR_MS = 1_000
OPENINGS = 7
FRAMES = """(ms) => new Promise((resolve) => {
    let frames = 0;
    const began = performance.now();
    const step = () => {
        frames += 1;
        const passed = performance.now() - began;
        if (passed < ms) requestAnimationFrame(step);
        else resolve(((frames - 1) * 1000) / passed);
    };
    requestAnimationFrame(step);
})"""
ROUND = """(ms) => new Promise((resolve) => {
    const { frame, live, store } = kickstand;
    const ages = [];
    const note = () => ages.push(live.lag);
    const began = performance.now();
    const before = store.events;
    frame.reset();
    frame.fast.add(note);
    setTimeout(() => {
        frame.fast.delete(note);
        const passed = (performance.now() - began) / 1000;
        ages.sort((a, b) => a - b);
        resolve({
            frames: frame.frames / passed, changes: (store.events - before) / passed,
            work: frame.quantile(0.95), age: ages[Math.floor(0.95 * (ages.length - 1))],
        });
    }, ms);
})"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
LOADED = """performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('.js'))
    .reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0) / 1000"""
# When a vCPU has been seen to enter its guest, from the moment the address was entered.
MOVING = """new Promise((resolve) => {
    const entered = () => window.kickstand?.vm()?.total('entries') > 0;
    const look = () => (entered() ? resolve(performance.now()) : setTimeout(look, 5));
    look();
})"""


class Load(threading.Thread):
    """A server in a thread, and what fills its event log."""

    def __init__(self, vms):
        super().__init__(daemon=True)
        self.vms = ["big", *(f"big{number}" for number in range(2, vms + 1))]
        self.ready = threading.Event()
        self.running = False
        self.port = 0

    def __enter__(self):
        self.start()
        if not self.ready.wait(30):
            raise RuntimeError("the server and its VMs were not there within 30 s")
        return self

    def __exit__(self, *exc):
        self.server.should_exit = True
        self.join(10)

    def run(self):
        asyncio.run(self._main())

    async def _main(self):
        settings = Settings(port=0, default_vm=False, limits=Limits(vcpus=MANY * VCPUS))
        app = create_app(settings)
        listener = bind(settings)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        started = asyncio.Event()
        self.server = Server(app, started.set)
        self.server.install_signal_handlers = lambda: None
        serving = asyncio.create_task(self.server.serve(sockets=[listener]))
        await started.wait()
        self.registry = app.state.context.registry
        for name in self.vms:
            await self.registry.create(name, vcpus=VCPUS)
        self.ready.set()
        await asyncio.gather(serving, self._emit())

    async def _emit(self):
        """Make vCPUs change state, evenly over time."""
        source = random.Random(1)
        states = {name: [VcpuState.USER.value] * VCPUS for name in self.vms}
        names = [state.value for state in VcpuState]
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self.server.should_exit:
            due = max(due + 1 / BATCHES, loop.time() - 1)
            await asyncio.sleep(max(0, due - loop.time()))
            if not self.running:
                continue
            for _ in range(CHANGES):
                name, vcpu = source.choice(self.vms), source.randrange(VCPUS)
                old, states[name][vcpu] = states[name][vcpu], source.choice(names)
                self.registry.log.emit(name, "vcpu_state", vcpu, {"state": states[name][vcpu], "old": old})


class Heap:
    """What a page's scripts keep, in MB."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable")

    def used(self):
        self.session.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in self.session.send("Performance.getMetrics")["metrics"]}
        return metrics["JSHeapUsedSize"] / 1e6


def rounds_of(browser, load, view, seconds, rounds):
    """One view under load, in turns with an empty page: what each round saw, the floors, and the heap after each."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    empty = browser.new_page()
    page.goto(f"http://127.0.0.1:{load.port}/#vm=big&view={view}")
    until(page, f"document.querySelector('#main > .view.{view}') !== null")
    heap = Heap(page)
    seen, floors, heaps = [], [], []
    for _ in range(rounds):
        load.running = False
        empty.bring_to_front()
        floors.append(empty.evaluate(FRAMES, FLOOR_MS))
        load.running = True
        page.bring_to_front()
        page.wait_for_timeout(SETTLE_MS)
        seen.append(page.evaluate(ROUND, seconds * 1000 / rounds))
        heaps.append(heap.used())
    load.running = False
    missed = page.evaluate("kickstand.store.missed")
    page.close()
    empty.close()
    return seen, floors, heaps, missed


def view_rows(browser, load, view, seconds):
    """A view with a thousand vCPUs."""
    seen, floors, heaps, missed = rounds_of(browser, load, view, seconds, ROUNDS)
    ratios = [each["frames"] / floor for each, floor in zip(seen, floors, strict=True)]
    changes = sum(each["changes"] for each in seen) / len(seen)
    note = f"{VCPUS:,} vCPUs, {changes:,.0f} changes/s, {missed:,} events skipped"
    # What the first round fills is filled once: the memory of the lanes, of the journal.
    growth = heaps[-1] - heaps[1]
    return [
        measured(f"{view}: frames", [each["frames"] for each in seen], "/s", at_least(45), note=note),
        judged(f"{view}: frames against an empty page", "an empty page", ratios),
        measured(f"{view}: work of a frame, p95", [each["work"] for each in seen], "ms", at_most(8)),
        measured(f"{view}: age of what is shown, p95", [each["age"] for each in seen], "ms", at_most(150)),
        measured(
            f"{view}: growth of the heap", abs(growth), "MB", at_most(5), note=f"{heaps[1]:.1f} to {heaps[-1]:.1f}"
        ),
    ]


def many_rows(browser, load, view, seconds):
    """The same with ten thousand vCPUs, in ten VMs of which the page shows one and follows all."""
    seen, _, _, _ = rounds_of(browser, load, view, seconds, 3)
    return [
        measured(f"{view}: frames with {MANY * VCPUS:,} vCPUs", [each["frames"] for each in seen], "/s", at_least(20)),
        measured(
            f"{view}: work of a frame with {MANY * VCPUS:,}, p95", [each["work"] for each in seen], "ms", at_most(16)
        ),
    ]


def opening_rows(browser):
    """From the address to something to see, on a server where nothing has run."""
    painted, moving, sizes = [], [], []
    for _ in range(OPENINGS):
        with serving() as server:
            page = browser.new_context().new_page()
            page.goto(server.url, wait_until="commit")
            moving.append(page.evaluate(MOVING))
            painted.append(page.evaluate(PAINTED))
            sizes.append(page.evaluate(LOADED))
            page.context.close()
    scripts = sorted((ROOT / "app" / "dashboard").rglob("*.js"))
    whole = len(gzip.compress(b"".join(script.read_bytes() for script in scripts))) / 1000
    note = f"as served, file by file; all views as one stream {whole:.1f}"
    return [
        measured("first paint", painted, "ms", at_most(500)),
        measured("vCPUs move on a fresh server", moving, "ms", at_most(1000)),
        measured("scripts that / loads", sizes[0], "kB", at_most(62), note=note),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15, help="for each view")
    parser.add_argument("--views", default="vcpus,timeline")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    views = asked.views.split(",")
    if reason := missing():
        return report([skipped("dashboard", reason)])
    rows = []
    with browsing() as browser:
        rows += opening_rows(browser)
        with Load(1) as load:
            for view in views:
                rows += view_rows(browser, load, view, asked.seconds)
        with Load(MANY) as load:
            for view in views:
                rows += many_rows(browser, load, view, min(asked.seconds, 6))
    return report(rows)


if __name__ == "__main__":
    main()
