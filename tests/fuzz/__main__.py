"""`make fuzz SECONDS=600`: every target in turn, with new seeds, until the time is up or something is found."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS

TURN_S = 2.0  # of one target at most, before the next: each has a turn, however little time there is


def once(target: str, seed: int) -> bool:
    """Feed one seed; prints what is found and how to see it again."""
    try:
        asyncio.run(TARGETS[target](seed))
    except Exception:
        sys.stdout.write(f"FOUND by {target}, seed {seed}:\n{traceback.format_exc()}\n")
        sys.stdout.write(f"again: python -m tests.fuzz --target {target} --seed {seed}\n")
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this; may be repeated")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--first", type=int, default=None, help="the first seed; by default another one every second")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    if options.seed is not None:
        return int(sum(not once(target, options.seed) for target in targets) > 0)
    seed = options.first if options.first is not None else int(time.time()) << 20
    fed = dict.fromkeys(targets, 0)
    turn_s = min(TURN_S, options.seconds / len(targets))
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        for target in targets:
            until = min(end, time.monotonic() + turn_s)
            while not fed[target] or time.monotonic() < until:
                if not once(target, seed + fed[target]):
                    return 1
                fed[target] += 1
    sys.stdout.write(", ".join(f"{target} {count}" for target, count in fed.items()) + ": nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
