"""Logs as one JSON object a line, each with the id of the request it is about."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
A_SECOND = 5  # lines of the same kind
KINDS = 1_000  # of complaints that are remembered


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message", "request"?, "error"?}``; ``extra={"fields": {...}}`` adds members."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever was logged: line ends of clients' strings are escaped by JSON."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        current = request_id.get()
        if current is not None:
            line["request"] = current
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), default=str)


class Seldom(logging.Filter):
    """Lets the same complaint pass so many times in a second; the next line says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """What is the same is where it comes from, and its text without what is put into it."""
        key = record.name, str(record.msg)[:100]
        since, times = self._seen.get(key, (record.created, 0))
        if record.created - since >= 1:
            if times > A_SECOND:
                record.fields = {**getattr(record, "fields", {}), "left_out": times - A_SECOND}
            since, times = record.created, 0
        if len(self._seen) >= KINDS:
            self._seen.clear()
        self._seen[key] = since, times + 1
        return times < A_SECOND


def install() -> None:
    """Write what this program and the libraries under it log to standard error as JSON, once."""
    logger = logging.getLogger()
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        handler.addFilter(Seldom())
        logger.addHandler(handler)
        logging.captureWarnings(capture=True)
