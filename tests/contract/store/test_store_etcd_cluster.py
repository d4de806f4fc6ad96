"""Three members, several endpoints: one goes, the store stays."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from control_plane.errors import OutcomeUnknownError, StoreUnavailableError
from control_plane.store.port import Put
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock
from tests.support.etcd import EtcdProcess, cluster_of
from tests.support.stores import DEADLINE_S, answers, etcd_store, take_events


@pytest.fixture
async def members(tmp_path):
    made = cluster_of(tmp_path, 3)
    for member in made:
        member.spawn()
    try:
        for member in made:
            await member.wait_ready()
        yield made
    finally:
        for member in made:
            member.kill()


@pytest.fixture
async def store(members: list[EtcdProcess]):
    async with etcd_store(*(member.endpoint for member in members)) as made:
        await answers(made)
        yield made


def leader_first(members: list[EtcdProcess]) -> list[EtcdProcess]:
    def leads(member: EtcdProcess) -> bool:
        (status,) = json.loads(member.ctl("endpoint", "status", "--write-out=json"))
        return status["Status"]["leader"] == status["Status"]["header"]["member_id"]

    return sorted(members, key=leads, reverse=True)


async def write_through(store, trouble) -> None:
    """Writes and watches while trouble runs; each write is seen once, in order."""
    writer = FencedWriter(store, prefix="/writers/w0/", clock=SystemClock())
    start = await store.put("/w/n", b"start")
    lease = await store.grant(20)
    written: list[bytes] = []
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set() or len(written) < 10:
            value = str(len(written)).encode()
            await writer.txn([], [Put("/w/n", value)], patience_s=DEADLINE_S)
            written.append(value)

    async def run() -> None:
        await trouble()
        await answers(store)
        done.set()

    async with asyncio.timeout(60):
        await asyncio.gather(write(), run())
        async with contextlib.aclosing(store.watch("/w/", from_revision=start + 1)) as watch:
            events = await take_events(watch, len(written))
        assert [event.kv.value for event in events] == written
        while True:
            with contextlib.suppress(StoreUnavailableError, OutcomeUnknownError):
                assert await store.keep_alive(lease.lease_id) == 20
                return


async def test_a_killed_leader_is_left_for_another_member(members, store):
    """It stays dead: before 3.5.3 a member that is killed and restarted may have lost data."""

    async def trouble() -> None:
        leader_first(members)[0].kill()

    await write_through(store, trouble)


async def test_each_member_may_stop_the_leader_first(members, store):
    async def trouble() -> None:
        for member in leader_first(members):
            with member.stopped():
                await answers(store)

    await write_through(store, trouble)


async def test_a_watch_goes_on_after_the_majority_was_lost(members, store):
    """The member in use still answers pings, but hears of nothing for a while."""
    start = await store.put("/w/a", b"0")
    in_use = members[0]
    async with (
        etcd_store(in_use.endpoint, members[1].endpoint, members[2].endpoint) as other,
        contextlib.aclosing(other.watch("/w/", from_revision=start)) as watch,
    ):
        await take_events(watch, 1)
        # Without a majority the first member has no leader.
        with (
            members[1].stopped(),
            members[2].stopped(),
            pytest.raises((StoreUnavailableError, OutcomeUnknownError)),
        ):
            await other.put("/w/a", b"lost or late")
        await answers(other)
        await answers(store)
        await store.put("/w/b", b"1")
        keys = []
        async with asyncio.timeout(DEADLINE_S):
            while "/w/b" not in keys:
                keys.extend(event.kv.key for event in (await anext(watch)).events)
