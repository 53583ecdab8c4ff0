"""irqfd shutdown: the eventfd's wake-up runs at any time, and the irqfd is freed while it does.

``irqfd_shutdown`` takes the irqfd off its eventfd's wait queue, flushes the injection work, and frees it. Without the
flush an injection that was queued before uses what has been freed.
"""

from kickstand.explore.own import Shared, atomic, blocked, rest, thread

FLUSH = False  # True: flush_work before kfree


class Irqfd(Shared):
    """On the wait queue; work queued or running; freed."""

    hooked = True
    queued = False
    running = False
    freed = False

    @atomic
    async def signal(self):
        """``irqfd_wakeup``, called under the wait queue's lock: queue the injection."""
        if self.hooked:
            self.queued = True
            self.changed()

    @atomic
    async def next_work(self):
        while not self.queued:
            await blocked(self)
        self.queued, self.running = False, True

    @atomic
    async def inject(self):
        assert not self.freed, "the injection uses an irqfd that has been freed"
        self.running = False
        self.changed()

    @atomic
    async def unhook(self):
        """``eventfd_ctx_remove_wait_queue``: no wake-up comes after this."""
        self.hooked = False

    @atomic
    async def flush(self):
        while self.queued or self.running:
            await blocked(self)

    @atomic
    async def free(self):
        self.freed = True


irqfd = Irqfd()


@thread
async def device():
    await irqfd.signal()
    await irqfd.signal()


@rest
@thread
async def kworker():
    while True:
        await irqfd.next_work()
        await irqfd.inject()


@thread
async def shutdown():
    await irqfd.unhook()
    if FLUSH:
        await irqfd.flush()
    await irqfd.free()
