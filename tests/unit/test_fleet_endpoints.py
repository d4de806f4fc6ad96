"""Connections to etcd's endpoints: which one is taken, and when a channel is closed."""

from __future__ import annotations

import grpc
import pytest

from control_plane.errors import StoreUnavailableError
from control_plane.store.etcd import connection as module
from control_plane.store.etcd.connection import Endpoints, EtcdSettings
from reelkit.clock import ManualClock


class Channel:
    """A channel that is up at once, or never."""

    def __init__(self, target: str, down: set[str]) -> None:
        self.target = target
        self.closed = False
        self._down = down

    def get_state(self, *, try_to_connect: bool = False):  # noqa: ARG002
        states = grpc.ChannelConnectivity
        return states.TRANSIENT_FAILURE if self.target in self._down else states.READY

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def down(monkeypatch):
    """Targets that refuse; channels are fakes."""
    refusing: set[str] = set()
    monkeypatch.setattr(module, "open_channel", lambda target, _: Channel(target, refusing))
    return refusing


def endpoints_on(clock: ManualClock, *targets: str) -> Endpoints:
    settings = EtcdSettings(endpoints=[f"http://{target}" for target in targets])
    return Endpoints(settings, clock=clock)


async def test_a_channel_that_fails_while_others_use_it_is_closed_by_the_last(down):
    endpoints = endpoints_on(ManualClock(), "a:1", "b:1")
    async with endpoints.connected() as mine:
        async with endpoints.connected() as others:
            assert others is mine
            await endpoints.failed(mine)
            # A call that is about to be sent on it must not find it closed.
            assert not mine.channel.closed
        assert not mine.channel.closed
        async with endpoints.connected() as next_one:
            assert next_one.endpoint == "b:1"
    assert mine.channel.closed
    assert not next_one.channel.closed


async def test_a_late_answer_is_no_reason_to_leave_an_endpoint_that_answers_others(down):
    clock = ManualClock()
    endpoints = endpoints_on(clock, "a:1")
    async with endpoints.connected() as first:
        sent_s = clock.monotonic()
        await clock.advance(0.5)
        endpoints.succeeded(first)
        await clock.advance(0.5)
        await endpoints.unanswered(first, since_s=sent_s)
        async with endpoints.connected() as again:
            assert again is first
        # Nothing was heard of it since this one was sent: it is away.
        await endpoints.unanswered(first, since_s=clock.monotonic())
        with pytest.raises(StoreUnavailableError):
            async with endpoints.connected():
                pass


async def test_a_connection_is_kept_while_it_works(down):
    endpoints = endpoints_on(ManualClock(), "a:1", "b:1")
    async with endpoints.connected() as first:
        pass
    async with endpoints.connected() as second:
        assert second is first


async def test_endpoints_that_refuse_rest_longer_each_time(down):
    clock = ManualClock()
    endpoints = endpoints_on(clock, "a:1")
    down.add("a:1")
    for rest_s in (1, 2, 4, 5, 5):
        with pytest.raises(StoreUnavailableError, match="refused"):
            await connect(endpoints)
        await clock.advance(rest_s - 0.1)
        # Too early: not even tried.
        with pytest.raises(StoreUnavailableError, match="no endpoint answers"):
            await connect(endpoints)
        await clock.advance(0.2)
    down.clear()
    connection = await connect(endpoints)
    endpoints.succeeded(connection)
    await endpoints.failed(connection)
    await clock.advance(1.1)
    await connect(endpoints)


async def test_a_refusing_endpoint_is_left_for_the_next_at_once(down):
    endpoints = endpoints_on(ManualClock(), "a:1", "b:1", "c:1")
    down |= {"a:1", "b:1"}
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await connect(endpoints)
    assert (await connect(endpoints)).endpoint == "c:1"


async def connect(endpoints: Endpoints):
    async with endpoints.connected() as connection:
        return connection
