"""Exhaustive searches take their time on a busy machine: a hang is told apart later here than elsewhere."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/explore/" in str(item.path):
            item.add_marker(pytest.mark.timeout(900))
