"""In the background: events that are too old or too many are forgotten, and the log is kept short."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable

from kickstand.journal.disk.store import Failure, Store, checkpoint, trim
from kickstand.settings import JournalSettings


async def look_after(store: Store, settings: JournalSettings, trouble: Callable[[], Failure | None]) -> None:
    """Until it is cancelled; nothing is done while there is ``trouble``."""

    def forget(connection: sqlite3.Connection) -> None:
        trim(connection, time.time() - settings.event_age_s, settings.event_bytes)

    while True:
        await asyncio.sleep(settings.upkeep_s)
        if trouble() is not None:
            continue
        with contextlib.suppress(Failure, sqlite3.Error):
            await store.wait(store.submit(forget))
            await asyncio.to_thread(checkpoint, store.path)
