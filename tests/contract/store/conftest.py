"""A store of each kind, for the one suite that both must pass."""

from __future__ import annotations

import pytest

from tests.support.stores import (
    StoreBench,
    etcd_bench,
    memory_bench,
)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    """The same behaviour in less time: an endpoint that failed rests 0.2 s at first, not 1 s."""
    monkeypatch.setattr("control_plane.store.etcd.connection.FIRST_BACKOFF_S", 0.2)


@pytest.fixture(params=["memory", "etcd"])
async def bench(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as made:
        yield made


@pytest.fixture
def store(bench: StoreBench):
    return bench.store
