"""What tests of machines share: a registry that leaves no task behind."""

from __future__ import annotations

import asyncio

import pytest

from kickstand.runtime.registry import Limits, Registry


@pytest.fixture
async def registry():
    registry = Registry(Limits())
    yield registry
    await registry.reset()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
