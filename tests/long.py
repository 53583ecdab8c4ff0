"""Long forms of tests, for whoever has the time: ``make test-long`` sets KICKSTAND_LONG."""

import os

LONG = "KICKSTAND_LONG" in os.environ


def either(short, long):
    """What the suite takes, and what it takes when there is time."""
    return long if LONG else short
