"""QEMU's accel-blocker: who wants all ioctls to end waits for a count that others keep above zero.

``accel_ioctl_inhibit_begin`` waits until no ioctl is under way, and ioctls that begin meanwhile are not held back as
long as the count is not zero. Two threads that overlap for ever starve it.
"""

from kickstand.explore.own import Shared, atomic, blocked, eventually, rest, thread

HOLD_BACK = False  # True: new ioctls wait as soon as somebody inhibits, and the starvation is gone


class LockCnt(Shared):
    """``QemuLockCnt``: how many ioctls are under way; locked at zero."""

    count = 0
    wanted = False
    locked = False

    @atomic
    async def begin(self):
        while self.locked or (HOLD_BACK and self.wanted):
            await blocked(self)
        self.count += 1

    @atomic
    async def end(self):
        self.count -= 1
        self.changed()

    @atomic
    async def inhibit(self):
        self.wanted = True

    @atomic
    async def wait_zero(self):
        while self.count:
            await blocked(self)
        self.locked = True

    @atomic
    async def permit(self):
        assert not self.count, "an ioctl is under way"
        self.wanted = self.locked = False
        self.changed()


lockcnt = LockCnt()


async def issue_ioctls():
    while True:
        await lockcnt.begin()
        await lockcnt.end()


rest(issue_ioctls)
thread(issue_ioctls, name="IO1")
thread(issue_ioctls, name="IO2")


@thread
async def inhibitor():
    await lockcnt.inhibit()
    await lockcnt.wait_zero()
    await lockcnt.permit()


@eventually
def inhibited():
    return lockcnt.locked
