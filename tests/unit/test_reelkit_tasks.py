from __future__ import annotations

import asyncio

import pytest

from reelkit.clock import ManualClock
from reelkit.tasks import TaskScope, retry_forever


async def test_leaving_the_scope_cancels_what_is_left():
    ended = asyncio.Event()

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with TaskScope("t") as scope:
        scope.spawn(forever(), name="forever")
        await asyncio.sleep(0)
    assert ended.is_set()
    assert scope.failure is None


async def test_a_failing_task_fails_the_scope():
    async def fails():
        raise ValueError("broken")

    async with TaskScope("t") as scope:
        scope.spawn(fails(), name="fails")
        await asyncio.wait_for(scope.failed.wait(), 5)
    assert isinstance(scope.failure, ValueError)


async def test_an_awaited_task_fails_its_awaiter_alone():
    async def fails():
        raise ValueError("broken")

    async with TaskScope("t") as scope:
        task = scope.spawn(fails(), name="fails", fatal=False)
        with pytest.raises(ValueError, match="broken"):
            await task
        assert not scope.failed.is_set()


async def test_a_closed_scope_starts_nothing():
    async with TaskScope("t") as scope:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        scope.spawn(asyncio.sleep(0), name="late")


async def test_retry_backs_off_and_a_healthy_attempt_resets_it():
    clock = ManualClock(start_s=0)
    started: list[float] = []

    async def attempt():
        started.append(clock.monotonic())
        if len(started) == 4:
            await clock.sleep(60)
        raise ConnectionError("gone")

    async with TaskScope("t") as scope:
        retry = retry_forever(
            attempt, name="a", clock=clock, expected=(ConnectionError,), first_delay_s=1
        )
        scope.spawn(retry, name="retry")
        await asyncio.sleep(0)
        for _ in range(200):
            await clock.advance(0.5)
    # Delays 1, 2, 4, then a healthy minute, then 1 again.
    assert started[:4] == [0, 1, 3, 7]
    assert started[4] == pytest.approx(68)


async def test_retry_lets_unexpected_errors_through():
    async def attempt():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await retry_forever(attempt, name="a", clock=ManualClock(), expected=(ConnectionError,))
