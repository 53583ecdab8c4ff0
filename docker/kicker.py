"""The other half of the VMM: it merges two memory slots into one and splits them again, for ever.

There is no ioctl that does it at once: DELETE, DELETE, CREATE. A vCPU that reads in between sees a hole, so all vCPUs
are kicked out of KVM_RUN first and let in afterwards. A memory transaction is all of that in one call, by the means of
the VM's variant; under variant ``none`` that is nothing, and the VMM sees spurious exits.

    KICKSTAND_URL=http://127.0.0.1:8000 python docker/kicker.py
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx

from kickstand.client import Client, Json, KickstandError, region

PAGE = 4096
M1, M2 = 1, 2  # the slots; the VMM on the other side has made them
PAUSE_S = 0.05
REPORT_S = 5.0
RETRY_S = 1.0


def next_change(slots: dict[int, Json]) -> list[Json]:
    """Both slots as one, or the one as two again: what there is decides, nothing has to be remembered."""
    gpa, hva = (int(slots[M1][name], 16) for name in ("guest_phys_addr", "userspace_addr"))
    gone = [region(slot, 0, 0, 0) for slot in (M1, M2) if slot in slots]  # size 0 deletes
    if M2 in slots:
        return [*gone, region(M1, gpa, 2 * PAGE, hva)]
    return [*gone, region(M1, gpa, PAGE, hva), region(M2, gpa + PAGE, PAGE, hva + PAGE)]


def change_for_ever(kvm: Client) -> None:
    """Merge, and split again."""
    if kvm.state()["kicked"]:
        kvm.resume()  # a server that starts again leaves its VMs kicked, until their VMM is there
    changes, due = 0, time.monotonic() + REPORT_S
    while True:
        slots = {slot["slot"]: slot for slot in kvm.regions()["regions"]}
        if M1 in slots:  # the other half has given the VM its memory
            answer = kvm.memory_transaction(next_change(slots))
            changes += 1
            if time.monotonic() > due:
                due += REPORT_S
                drain, window = (answer[name] / 1000 for name in ("drain_ns", "window_ns"))
                print(f"{changes} merges and splits; the last: vCPUs out in {drain:.0f} us, for {window:.0f} us")
        time.sleep(PAUSE_S)


def main() -> None:
    """Change the VM ``default`` until SIGTERM; a server that goes away is waited for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    token_file = os.environ.get("KICKSTAND_TOKEN_FILE")
    token = Path(token_file).read_text().strip() if token_file else None
    with Client(os.environ.get("KICKSTAND_URL", "http://127.0.0.1:8000"), token=token) as kvm:
        while True:
            try:
                change_for_ever(kvm)
            except (httpx.TransportError, KickstandError) as lost:
                print(f"the server does not answer ({lost}); trying again")
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
