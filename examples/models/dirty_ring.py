"""KVM's dirty ring: userspace collects entries, says so, and KVM_RESET_DIRTY_RINGS write-protects their pages again.

The ring is full when the vCPU has pushed SIZE entries that nobody has reset: KVM_RUN answers KVM_EXIT_DIRTY_RING_FULL.
A page that is written again between harvest and reset must be told of again, or live migration loses it.
"""

from kickstand.explore.own import Shared, atomic, blocked, choose, never, rest, thread

RESET_BEFORE_COPY = False  # True: protect the page, then copy it, and no change is lost
PAGES, SIZE = 2, 2


class Ring(Shared):
    """Entries (page, state), and which pages trap on the next write; what memory and the copy hold."""

    dirty = ()  # entries that userspace has not collected
    harvested = ()  # collected, not reset
    protected = frozenset(range(PAGES))  # a write is logged
    memory = (0,) * PAGES  # version of each page, modulo 3
    copied = (0,) * PAGES
    copying = None  # a page that is about to be copied

    @atomic
    async def write(self, page):
        """The guest stores: a protected page gets an entry and is let go. False: the ring is full."""
        if page in self.protected:
            if len(self.dirty) + len(self.harvested) == SIZE:
                return False
            self.dirty += (page,)
            self.protected -= {page}
        self.memory = tuple((version + (at == page)) % 3 for at, version in enumerate(self.memory))
        self.changed()
        return True

    @atomic
    async def wait_room(self):
        while len(self.dirty) + len(self.harvested) == SIZE:
            await blocked(self)

    @atomic
    async def harvest(self):
        while not self.dirty:
            await blocked(self)
        page, *rest = self.dirty
        self.dirty, self.harvested, self.copying = tuple(rest), (page,), page
        return page

    @atomic
    async def reset(self):
        """KVM_RESET_DIRTY_RINGS."""
        self.protected |= set(self.harvested)
        self.harvested = ()
        self.changed()

    @atomic
    async def copy(self, page):
        self.copied = tuple(self.memory[at] if at == page else old for at, old in enumerate(self.copied))
        self.copying = None


ring = Ring()


@rest
@thread
async def vcpu():
    while True:
        if not await ring.write(await choose(PAGES)):
            await ring.wait_room()


@rest
@thread
async def migration():
    while True:
        page = await ring.harvest()
        if RESET_BEFORE_COPY:
            await ring.reset()
            await ring.copy(page)
        else:
            await ring.copy(page)
            await ring.reset()


@never
def a_change_nobody_will_be_told_of():
    told = {*ring.dirty, *ring.harvested, ring.copying}
    return any(ring.memory[page] != ring.copied[page] for page in ring.protected if page not in told)
