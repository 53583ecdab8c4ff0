"""The faults that axe-core finds, used where `make check` has put it or KICKSTAND_AXE says."""

import os
from pathlib import Path

from tests.dashboard import tools

AXE = os.environ.get("KICKSTAND_AXE", str(tools.AXE) if tools.AXE.exists() else "")


def axe(page):
    page.evaluate(Path(AXE).read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        (each["id"], each["nodes"][0]["html"][:120])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
