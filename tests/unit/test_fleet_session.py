"""Sessions on an in-memory store and a clock moved by hand."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import structlog
from structlog.testing import capture_logs

from control_plane.errors import StoreUnavailableError, SupersededError
from control_plane.leased_record import LeasedRecord
from control_plane.session import Session, Waiting
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Put
from control_plane.store.writer import FencedWriter
from reelkit.clock import ManualClock

KEY = "/reelmesh/ap/fleet/nodes/n"
TTL_S = 10.0


class Bench:
    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        self.store, self.clock = store, clock
        self.new_leases = 0
        self.lost_leases = 0

    def record(self, key: str = KEY) -> LeasedRecord:
        writer = FencedWriter(self.store, prefix="/w/", clock=self.clock)
        return LeasedRecord(store=self.store, writer=writer, clock=self.clock, key=key, ttl_s=TTL_S)

    def session(self, *, also=(), key: str = KEY, waiting: Waiting | None = None) -> Session:
        def note_new() -> None:
            self.new_leases += 1

        def note_lost() -> None:
            self.lost_leases += 1

        return Session(
            self.record(key),
            clock=self.clock,
            also=also,
            on_new_lease=note_new,
            on_lost_lease=note_lost,
            waiting=waiting,
        )

    async def value(self) -> bytes | None:
        kv = await self.store.get(KEY)
        return kv.value if kv else None

    async def turn(self) -> None:
        """Lets every task run until it waits."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def bench():
    clock = ManualClock()
    async with MemoryStore(clock=clock) as store:
        yield Bench(store, clock)


@contextlib.asynccontextmanager
async def kept(session: Session):
    task = asyncio.ensure_future(session.keep())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_session_opens_with_a_lease_and_what_belongs_to_it(bench):
    session = bench.session(also=[Put("/models/m", b"info")])
    await session.open(b"1", lease_id=0)
    kv = await bench.store.get(KEY)
    assert (kv.value, kv.lease_id) == (b"1", session.record.lease_id)
    model = await bench.store.get("/models/m")
    # Model infos outlive the node that brought them.
    assert (model.value, model.lease_id, model.mod_revision) == (b"info", 0, kv.mod_revision)
    assert bench.new_leases == 1


async def test_reports_renew_the_lease_and_only_they(bench):
    session = bench.session()
    await session.open(b"1", lease_id=0)
    async with kept(session):
        for _ in range(10):
            await bench.clock.advance(TTL_S / 3)
            session.report(b"1")
            await bench.turn()
        assert await bench.value() == b"1"
        assert (await bench.store.get(KEY)).version == 1
        await bench.clock.advance(TTL_S - 1)
        assert await bench.value() == b"1"
        await bench.clock.advance(2)
        assert await bench.value() is None


async def test_a_burst_of_reports_renews_once(bench):
    session = bench.session()
    await session.open(b"1", lease_id=0)
    renewals = []
    keep_alive = bench.store.keep_alive

    async def counted(lease_id: int) -> float:
        renewals.append(lease_id)
        return await keep_alive(lease_id)

    bench.store.keep_alive = counted
    async with kept(session):
        await bench.clock.advance(TTL_S / 3)
        for _ in range(50):
            session.report(b"1")
            await bench.turn()
    assert len(renewals) == 1


async def test_the_newest_report_wins_after_an_outage(bench):
    session = bench.session()
    await session.open(b"1", lease_id=0)
    async with kept(session) as task:
        bench.store.set_available(available=False)
        for value in (b"2", b"3"):
            session.report(value)
            await bench.clock.advance(1)
        bench.store.set_available(available=True)
        await bench.clock.advance(1)
        await bench.turn()
        assert await bench.value() == b"3"
        assert not task.done()
    assert bench.lost_leases == 0


async def test_an_outage_is_told_once_whatever_its_length_and_however_many_wait(bench, monkeypatch):
    # A test before may have set a level, and a logger that was used is bound to it.
    structlog.reset_defaults()
    monkeypatch.setattr("control_plane.session._log", structlog.get_logger())
    waiting = Waiting()
    sessions = [bench.session(key=f"{KEY}{number}", waiting=waiting) for number in range(3)]
    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            for session in sessions:
                await session.open(b"1", lease_id=0)
                await stack.enter_async_context(kept(session))
            bench.store.set_available(available=False)
            for session in sessions:
                session.report(b"2")
            for _ in range(5):
                await bench.turn()
                await bench.clock.advance(1)
            bench.store.set_available(available=True)
            await bench.clock.advance(1)
            await bench.turn()
            assert (await bench.store.get(f"{KEY}2")).value == b"2"
    told = [entry["event"] for entry in logs if "wait" in entry["event"]]
    assert told == ["records wait for the store", "no record waits for the store any more"]


async def test_an_agent_that_went_silent_in_an_outage_is_not_renewed_after_it(bench):
    session = bench.session()
    await session.open(b"1", lease_id=0)
    async with kept(session):
        bench.store.set_available(available=False)
        session.report(b"2")
        # The store's lease timer stands while it is away, as etcd's does.
        for _ in range(15):
            await bench.clock.advance(1)
        bench.store.set_available(available=True)
        await bench.clock.advance(5)
        await bench.turn()
        assert await bench.value() != b"2"


async def test_a_lost_lease_is_replaced_with_the_next_report(bench):
    session = bench.session(also=[Put("/models/m", b"info")])
    await session.open(b"1", lease_id=0)
    first = session.record.lease_id
    async with kept(session):
        await bench.store.revoke(first)
        await bench.store.delete("/models/m")
        await bench.clock.advance(TTL_S / 3)
        session.report(b"2")
        await bench.turn()
        kv = await bench.store.get(KEY)
        assert kv.value == b"2"
        assert kv.lease_id == session.record.lease_id != first
        assert await bench.store.get("/models/m") is not None
    assert (bench.new_leases, bench.lost_leases) == (2, 1)


async def test_a_kept_lease_with_the_same_record_writes_nothing(bench):
    first = bench.session()
    await first.open(b"1", lease_id=0)
    revision = (await bench.store.get(KEY)).mod_revision
    await bench.clock.advance(TTL_S - 1)
    second = bench.session()
    await second.open(b"1", lease_id=first.record.lease_id)
    kv = await bench.store.get(KEY)
    assert (kv.lease_id, kv.mod_revision) == (first.record.lease_id, revision)
    # And the lease was renewed in the act.
    await bench.clock.advance(TTL_S - 1)
    assert await bench.value() == b"1"


async def test_a_lease_that_ran_out_is_not_revived(bench):
    first = bench.session()
    await first.open(b"1", lease_id=0)
    await bench.clock.advance(TTL_S + 1)
    second = bench.session()
    await second.open(b"1", lease_id=first.record.lease_id)
    assert second.record.lease_id != first.record.lease_id
    assert await bench.value() == b"1"


async def test_the_older_of_two_holders_is_told_by_its_next_write(bench):
    older, newer = bench.session(), bench.session()
    await older.open(b"1", lease_id=0)
    await newer.open(b"2", lease_id=0)
    async with kept(older) as task:
        older.report(b"3")
        await bench.turn()
        assert isinstance(task.exception(), SupersededError)
    assert await bench.value() == b"2"


async def test_a_goodbye_of_the_older_holder_leaves_the_newer_ones_record(bench):
    older, newer = bench.session(), bench.session()
    await older.open(b"1", lease_id=0)
    await newer.open(b"2", lease_id=0)
    await older.close()
    assert await bench.value() == b"2"
    await newer.close()
    assert await bench.value() is None


async def test_a_session_does_not_open_while_the_store_is_away(bench):
    bench.store.set_available(available=False)
    with pytest.raises(StoreUnavailableError):
        await bench.session().open(b"1", lease_id=0)


async def test_a_record_that_somebody_removed_comes_back_under_a_new_lease(bench):
    session = bench.session()
    await session.open(b"1", lease_id=0)
    await bench.store.delete(KEY)
    async with kept(session):
        session.report(b"2")
        await bench.turn()
        assert await bench.value() == b"2"


async def test_a_holder_that_moved_away_and_back_writes_on(bench):
    """Another replica wrote under the same lease in between."""
    here, there = bench.session(), bench.session()
    await here.open(b"1", lease_id=0)
    await there.open(b"2", lease_id=here.record.lease_id)
    async with kept(here) as task:
        here.report(b"3")
        await bench.turn()
        assert not task.done()
    assert await bench.value() == b"3"
