"""Does the page keep up? A thousand vCPUs, 20 batches a second, 20,000 changes of state a second.

A real server sends the events; a headless Chromium, drawing in software, shows the fleet. Printed: frames a second
against the display's own rate on an empty page (measured in turn, so that a busy machine slows both), the work of a
frame, how old what is shown is, the heap over time, and the size of the scripts.

    python benchmarks/dashboard.py [SECONDS] [VIEW]...
"""

import asyncio
import gzip
import random
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.core.trace import VcpuState
from app.main import Server, bind, create_app
from app.settings import Settings
from tests.browser.browser import browsing, missing

VCPUS = 1_000
BATCHES = 20  # a second
CHANGES = 1_000  # in a batch
SETTLE_MS = 1_500
ROUNDS = 3
GZIPPED = 60_000  # bytes, all scripts as one stream
LIMITS = {"frames a second": 45.0, "work p95, ms": 8.0, "age p95, ms": 150.0}
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
AGES = """(ms) => new Promise((resolve) => {
    const ages = [];
    const note = () => ages.push(kickstand.live.lag);
    kickstand.frame.fast.add(note);
    setTimeout(() => (kickstand.frame.fast.delete(note), resolve(ages.sort((a, b) => a - b))), ms);
})"""


class Load(threading.Thread):
    """A server in a thread, and what fills its event log."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self.running = False
        self.port = 0

    def run(self):
        asyncio.run(self._main())

    async def _main(self):
        settings = Settings(port=0, default_vm=False)
        app = create_app(settings)
        listener = bind(settings)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        server = Server(app, self.ready.set)
        server.install_signal_handlers = lambda: None
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not self.ready.is_set():
            await asyncio.sleep(0.01)
        self.registry = app.state.context.registry
        await self.registry.create("big", vcpus=VCPUS)
        self.server = server
        await asyncio.gather(serving, self._emit(server))

    async def _emit(self, server):
        """Make vCPUs change state, evenly over time."""
        source = random.Random(1)
        states = [VcpuState.USER.value] * VCPUS
        names = [state.value for state in VcpuState]
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not server.should_exit:
            due = max(due + 1 / BATCHES, loop.time() - 1)
            await asyncio.sleep(max(0, due - loop.time()))
            if not self.running:
                continue
            for _ in range(CHANGES):
                vcpu = source.randrange(VCPUS)
                old, states[vcpu] = states[vcpu], source.choice(names)
                self.registry.log.emit("big", "vcpu_state", vcpu, {"state": states[vcpu], "old": old})

    def stop(self):
        self.server.should_exit = True
        self.join(10)


def measure(browser, load, view, seconds):
    """One view under load, in turns with an empty page."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    empty = browser.new_page()
    page.goto(f"http://127.0.0.1:{load.port}/#vm=big&view={view}")
    load.running = True
    page.wait_for_timeout(SETTLE_MS)
    floors, rates, works, ages, heaps = [], [], [], [], []
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    for _ in range(ROUNDS):
        empty.bring_to_front()
        load.running = False
        floors.append(empty.evaluate(FRAMES, 1000))
        load.running = True
        page.bring_to_front()
        page.wait_for_timeout(SETTLE_MS)
        before = page.evaluate("(kickstand.frame.reset(), kickstand.store.events)")
        ages += page.evaluate(AGES, seconds * 1000 / ROUNDS)
        changes = page.evaluate("kickstand.store.events") - before
        rates.append(page.evaluate("kickstand.frame.frames") * ROUNDS / seconds)
        works.append((page.evaluate("kickstand.frame.quantile(0.5)"), page.evaluate("kickstand.frame.quantile(0.95)")))
        session.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        heaps.append(metrics["JSHeapUsedSize"] / 1e6)
        rate = changes * ROUNDS / seconds
        print(
            f"  {view}: {rate:,.0f} changes/s, {rates[-1]:.0f} frames/s of {floors[-1]:.0f}, "
            f"work p50 {works[-1][0]:.1f} p95 {works[-1][1]:.1f} ms, heap {heaps[-1]:.1f} MB"
        )
    load.running = False
    skipped = page.evaluate("kickstand.store.missed")
    page.close()
    empty.close()
    ages.sort()
    return {
        "frames a second": max(rates),
        "of an empty page's": max(rates) / max(floors),
        "work p95, ms": min(p95 for _, p95 in works),
        "age p95, ms": ages[int(0.95 * (len(ages) - 1))],
        "heap growth, MB": heaps[-1] - heaps[0],
        "events skipped": skipped,
    }


def main(seconds, views):
    if reason := missing():
        sys.exit(reason)
    scripts = sorted((Path(__file__).parents[1] / "app" / "dashboard").rglob("*.js"))
    size = len(gzip.compress(b"".join(script.read_bytes() for script in scripts)))
    print(f"{VCPUS} vCPUs, {BATCHES} batches/s, {BATCHES * CHANGES:,} changes/s; best of {ROUNDS} rounds")
    load = Load()
    load.start()
    load.ready.wait(20)
    met = True
    with browsing() as browser:
        for view in views:
            for name, value in measure(browser, load, view, seconds).items():
                limit = LIMITS.get(name)
                good = limit is None or (value >= limit if name == "frames a second" else value <= limit)
                met = met and good
                verdict = "" if limit is None else f"   target {limit:g}: {'met' if good else 'MISSED'}"
                print(f"{view:9} {name:20} {value:9.2f}{verdict}")
    load.stop()
    print(f"scripts   gzip, kB             {size / 1000:9.2f}   target 60: {'met' if size <= GZIPPED else 'MISSED'}")
    return met


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12, sys.argv[2:] or ["fleet", "timeline"])
