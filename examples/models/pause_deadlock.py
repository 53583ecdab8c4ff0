"""cloud-hypervisor's pause: the VMM pauses the device thread first, and a vCPU waits for that device.

A vCPU that exits to a device asks the device thread and waits for its reply inside the exit, where it sees no pause.
"""

from kickstand.explore.own import Shared, atomic, blocked, choose, eventually, never, rest, thread

DEVICE_FIRST = True  # False: pause vCPUs first, and the deadlock is gone


class Pausable(Shared):
    """A thread that can be paused: it looks at ``pause`` between two pieces of work, and acknowledges."""

    pause = False
    paused = False

    @atomic
    async def ask(self):
        self.pause = True
        self.changed()

    @atomic
    async def wait_paused(self):
        while not self.paused:
            await blocked(self)

    @atomic
    async def is_asked(self):
        return self.pause

    @atomic
    async def rest_until_resumed(self):
        self.paused = True
        self.changed()

    @atomic
    async def wait_resumed(self):
        while self.pause:
            await blocked(self)
        self.paused = False

    @atomic
    async def resume(self):
        self.pause = False
        self.changed()


class Bus(Shared):
    """One request of the vCPU to the device, and its reply."""

    request = False
    reply = False

    @atomic
    async def ask(self):
        self.request = True
        self.changed()

    @atomic
    async def wait_reply(self):
        while not self.reply:
            await blocked(self)
        self.reply = False

    @atomic
    async def take(self, me):
        """The device's next work: a request, or a pause."""
        while not self.request and not me.pause:
            await blocked(self, me)
        if me.pause:
            return False
        self.request = False
        return True

    @atomic
    async def answer(self):
        self.reply = True
        self.changed()


cpu, device, bus = Pausable(), Pausable(), Bus()


@thread
async def vmm():
    order = (device, cpu) if DEVICE_FIRST else (cpu, device)
    for one in order:
        await one.ask()
        await one.wait_paused()
    for one in order:
        await one.resume()


@rest
@thread
async def vcpu():
    while True:
        if await cpu.is_asked():
            await cpu.rest_until_resumed()
            await cpu.wait_resumed()
        elif await choose(2):  # an exit to the device; else the guest just runs
            await bus.ask()
            await bus.wait_reply()


@rest
@thread
async def device_thread():
    while True:
        if await bus.take(device):
            await bus.answer()
        else:
            await device.rest_until_resumed()
            await device.wait_resumed()


@never
def paused_with_a_request_under_way():
    return cpu.paused and (bus.request or bus.reply)


@eventually
def everybody_paused():
    return cpu.paused and device.paused
