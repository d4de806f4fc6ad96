"""The etcd store while its server is killed, stopped, cut off, slow, compacted and restored."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from control_plane.errors import (
    OutcomeUnknownError,
    StoreError,
    StoreRestoredError,
    StoreUnavailableError,
)
from control_plane.store.etcd import EtcdStore
from control_plane.store.port import Put, absent, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock
from tests.support.etcd import EtcdProcess
from tests.support.faultproxy import Direction, FaultProxy
from tests.support.stores import (
    DEADLINE_S,
    answers,
    etcd_store,
    eventually,
    running_etcd,
    take_events,
)


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def proxy(etcd: EtcdProcess):
    async with FaultProxy(etcd.address) as made:
        yield made


@pytest.fixture
async def store(proxy: FaultProxy):
    """The store under test sees etcd through the proxy."""
    async with etcd_store(f"http://{proxy.address}") as made:
        yield made


@pytest.fixture
async def direct(etcd: EtcdProcess):
    """A witness that sees etcd as it is."""
    async with etcd_store(etcd.endpoint) as made:
        yield made


def writer_on(store: EtcdStore) -> FencedWriter:
    return FencedWriter(store, prefix="/writers/w0/", clock=SystemClock())


# Writes


async def test_a_write_that_was_applied_unheard_is_not_called_a_failure(store, direct, proxy):
    await store.put("/a", b"0")
    proxy.hold(Direction.TO_CLIENT)
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknownError):
            await store.put("/a", b"1")
    kv = await direct.get("/a")
    assert (kv.value, kv.version) == (b"1", 2)
    proxy.heal()
    await answers(store)
    # It was not sent a second time.
    assert (await direct.get("/a")).version == 2


async def test_a_write_that_finds_no_server_surely_was_not_applied(store, direct, proxy):
    proxy.cut(refuse=True)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError):
            await store.put("/a", b"1")
    proxy.heal()
    await answers(store)
    assert await direct.get("/a") is None


async def test_a_fenced_write_finds_out_that_it_was_applied(store, direct, proxy):
    writer = writer_on(store)
    await writer.txn([], [Put("/warm", b"")])
    proxy.hold(Direction.TO_CLIENT)
    writing = asyncio.ensure_future(writer.txn([absent("/a")], [Put("/a", b"1")], patience_s=15))

    async def applied() -> bool:
        return await direct.get("/a") is not None

    await eventually(applied)
    # The answer dies with its connection.
    proxy.cut()
    proxy.heal()
    result = await writing
    kv = await direct.get("/a")
    assert result.succeeded
    assert (result.revision, kv.version) == (kv.mod_revision, 1)


async def test_a_fenced_write_that_arrives_late_does_nothing(store, direct, proxy):
    """The request is held on its way, its writer gives it up, and then it arrives."""
    writer = writer_on(store)
    await writer.txn([], [Put("/a", b"0")])
    proxy.hold(Direction.TO_SERVER)
    writing = asyncio.ensure_future(writer.txn([], [Put("/a", b"1")], patience_s=15))
    # The writer's next connection goes through, the held one stands.
    await eventually(lambda: proxy.accepted >= 2)
    proxy.heal()
    assert (await writing).succeeded
    await direct.put("/probe", b"")
    # Applied once: by whichever of the two sendings was first, never by both.
    assert (await direct.get("/a")).version == 2


async def test_a_counter_is_exact_through_kills_stops_and_cuts(etcd, store, direct, proxy):
    writer = writer_on(store)
    done = asyncio.Event()

    async def count() -> int:
        won = 0
        while not done.is_set() or won < 5:
            try:
                kv = await store.get("/counter")
                value, revision = (int(kv.value), kv.mod_revision) if kv else (0, 0)
                result = await writer.txn(
                    [unchanged("/counter", revision)],
                    [Put("/counter", str(value + 1).encode())],
                    patience_s=DEADLINE_S,
                )
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
                continue
            won += result.succeeded
        return won

    async def trouble() -> None:
        for _ in range(2):
            with etcd.stopped():
                await asyncio.sleep(1.2)
            await answers(direct)
            etcd.kill()
            await etcd.start()
            await answers(direct)
            proxy.hold(Direction.TO_CLIENT)
            await asyncio.sleep(0.3)
            proxy.cut()
            proxy.heal()
            await answers(store)
        done.set()

    async with asyncio.timeout(60):
        *told, _ = await asyncio.gather(*(count() for _ in range(4)), trouble())
    assert int((await direct.get("/counter")).value) == sum(told)


async def test_a_stopped_server_is_given_up_in_about_a_second(etcd, store):
    await store.put("/a", b"0")
    with etcd.stopped():
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailableError):
            await store.get("/a")
        assert asyncio.get_running_loop().time() - started_s < 3.5
    await answers(store)


async def test_a_slow_network_is_not_an_outage(store, proxy):
    await store.put("/a", b"0")
    proxy.delay(0.1)
    assert (await store.get("/a")).value == b"0"
    lease = await store.grant(10)
    assert await store.keep_alive(lease.lease_id) == 10
    assert proxy.accepted == 1


# Leases


async def test_renewals_go_on_over_another_connection(store, proxy):
    lease = await store.grant(30)
    await store.keep_alive(lease.lease_id)
    proxy.cut()

    async def renewed() -> bool:
        try:
            return await store.keep_alive(lease.lease_id) == 30
        except StoreUnavailableError:
            return False

    await eventually(renewed)


async def test_a_renewal_that_gets_no_answer_is_unavailable_not_lost(store, proxy):
    lease = await store.grant(30)
    await store.keep_alive(lease.lease_id)
    proxy.hold()
    renewals = [store.keep_alive(lease.lease_id) for _ in range(3)]
    async with asyncio.timeout(5):
        results = await asyncio.gather(*renewals, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailableError}
    proxy.heal()
    await answers(store)
    assert (await store.time_to_live(lease.lease_id)).granted_s == 30


async def test_a_lease_outlives_a_restart_of_its_server(etcd, store):
    lease = await store.grant(5)
    await store.put("/a", b"1", lease_id=lease.lease_id)
    etcd.kill()
    await etcd.start()
    await answers(store)
    assert await store.keep_alive(lease.lease_id) == 5
    assert await store.get("/a") is not None


# Watches


async def test_a_long_replay_that_is_cut_midway_loses_nothing(store, direct, proxy):
    """etcd3aio lost 2,000 of 3,000 events here, without an error."""
    start = await direct.put("/w/0000", b"")
    for block in range(30):
        # A hundred keys a transaction: 3,000 events in 30 revisions of 1 KiB each.
        puts = [Put(f"/w/{block:02}{n:02}", bytes(1024)) for n in range(100)]
        await direct.txn([], puts)
    proxy.cut_after(700_000)
    async with contextlib.aclosing(store.watch("/w/", from_revision=start + 1)) as watch:
        events = await take_events(watch, 3_000)
    assert [e.kv.key for e in events] == [f"/w/{b:02}{n:02}" for b in range(30) for n in range(100)]
    assert proxy.accepted >= 2


async def test_a_replay_far_beyond_the_message_limit_comes_whole(store, direct):
    start = await direct.put("/w/a", b"")
    value = bytes(15 * 1024)
    for _ in range(20):
        await direct.txn([], [Put(f"/w/{n}", value) for n in range(60)])
    async with contextlib.aclosing(store.watch("/w/", from_revision=start + 1)) as watch:
        events = await take_events(watch, 1_200)
    assert len(events) == 1_200
    assert sum(len(e.kv.value) for e in events) == 1_200 * len(value)


async def test_a_watch_through_kills_and_cuts_sees_each_event_once(etcd, store, direct, proxy):
    start = await direct.put("/w/n", b"start")
    written: list[bytes] = []
    done = asyncio.Event()

    async def write() -> None:
        writer = writer_on(direct)
        while not done.is_set():
            value = str(len(written)).encode()
            await writer.txn([], [Put("/w/n", value)], patience_s=DEADLINE_S)
            written.append(value)

    async def trouble() -> None:
        for _ in range(3):
            proxy.cut()
            await answers(store)
            etcd.kill()
            await etcd.start()
            await answers(direct)
            await answers(store)
        done.set()

    seen: list[tuple[int, bytes]] = []

    async def follow() -> None:
        async with contextlib.aclosing(store.watch("/w/", from_revision=start + 1)) as watch:
            async for batch in watch:
                seen.extend((e.kv.mod_revision, e.kv.value) for e in batch.events)
                if seen and seen[-1][1] == b"last":
                    return

    async with asyncio.timeout(60):
        following = asyncio.ensure_future(follow())
        await asyncio.gather(write(), trouble())
        written.append(b"last")
        await direct.put("/w/n", b"last")
        await following
    assert [value for _, value in seen] == written
    assert [revision for revision, _ in seen] == sorted({revision for revision, _ in seen})


async def test_a_watch_notices_a_network_that_swallows_everything(store, direct, proxy):
    """Only HTTP/2 pings tell: after 5 s of silence and 3 s without an answer."""
    start = await direct.put("/w/a", b"0")
    watch = store.watch("/w/", from_revision=start)
    await take_events(watch, 1)
    waiting = asyncio.ensure_future(take_events(watch, 1))
    proxy.hold()
    await direct.put("/w/a", b"1")
    # The watch connects anew, though the held connection never broke.
    await eventually(lambda: proxy.accepted >= 2)
    proxy.heal()
    (event,) = await waiting
    await watch.aclose()
    assert event.kv.value == b"1"


async def test_an_idle_watch_goes_on_where_compaction_passed_it_by(etcd, store, direct):
    """Progress reports move an idle watch on, so that compaction elsewhere costs it nothing."""
    await answers(direct)
    etcd.kill()
    etcd.extra = ("--experimental-watch-progress-notify-interval=100ms",)
    await etcd.start()
    await answers(direct)
    await answers(store)
    start = await direct.put("/w/a", b"0")
    async with contextlib.aclosing(store.watch("/w/", from_revision=start)) as watch:
        await take_events(watch, 1)
        last = await direct.put("/other", b"1")
        async with asyncio.timeout(DEADLINE_S):
            while (batch := await anext(watch)).revision < last:
                pass
        assert batch.events == ()
        await direct.compact(last)
        etcd.kill()
        await etcd.start()
        await answers(direct)
        await direct.put("/w/a", b"2")
        (event,) = await take_events(watch, 1)
    assert event.kv.value == b"2"


# Restores


async def test_a_backup_put_back_is_noticed_though_the_cluster_id_is_the_same(
    etcd, store, tmp_path
):
    await store.put("/a", b"in the backup")
    backup = tmp_path / "backup.db"
    etcd.ctl("snapshot", "save", str(backup))
    for _ in range(5):
        await store.put("/a", b"after the backup")
    last = (await store.get("/a")).mod_revision
    watch = store.watch("/", from_revision=last + 1)
    waiting = asyncio.ensure_future(anext(watch))
    etcd.kill()
    etcd.wipe()
    etcd.ctl(
        "snapshot",
        "restore",
        str(backup),
        f"--name={etcd.name}",
        f"--data-dir={etcd.folder / etcd.name}",
        f"--initial-cluster={etcd.name}={etcd.peer_url}",
        f"--initial-advertise-peer-urls={etcd.peer_url}",
        binary="etcdutl",
    )
    await etcd.start()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(StoreRestoredError):
            await waiting
    await watch.aclose()
    await answers(store)
    assert (await store.get("/a")).value == b"in the backup"
    # From here on the restored history is the known one.
    async with contextlib.aclosing(store.watch("/", from_revision=1)) as anew:
        await store.put("/a", b"new")
        with contextlib.suppress(StoreError):
            await take_events(anew, 1)
