"""Any number of vCPUs: what is decided for few is true for every N where an erasure argument goes through.

Take a run of N vCPUs and erase all but one (or two): if what is left is a run of the small world, a property that
holds there holds for every N. ``docs/any-number.md`` has the argument; here is what it needs, checked by the tool:
``worlds`` tells vCPUs apart from what they share, ``ghosts`` performs the erased run beside the real one (C1, C3),
``erasure`` compares the automata (C2), ``counting`` looks for numbers of vCPUs in the code (C0), ``certificate`` asks
all of them.
"""
