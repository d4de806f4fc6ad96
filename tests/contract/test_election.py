"""Elections on the in-memory store and on a real etcd: at most one writer, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from control_plane.errors import NotLeaderError
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Put, absent
from reelkit.clock import ManualClock
from tests.support.elections import (
    KEY,
    LOG,
    TTL_S,
    Candidate,
    CandidateProcess,
    candidates,
    check_history,
    election_on,
    history,
)
from tests.support.stores import (
    DEADLINE_S,
    EtcdBench,
    MemoryBench,
    answers,
    etcd_bench,
    etcd_store,
    eventually,
    memory_bench,
    running_etcd,
)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr("control_plane.store.etcd.connection.FIRST_BACKOFF_S", 0.2)


@pytest.fixture(params=["memory", "etcd"])
async def bench(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as made:
        yield made


@pytest.fixture
async def etcd(tmp_path):
    async with etcd_bench(tmp_path) as made:
        yield made


async def leader_of(group, bench=None, *, other_than=None):
    """The candidate that leads, once one does; time passes meanwhile where it is made up."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            leading = [each for each in group if each.election.leadership is not None]
            assert len(leading) <= 1
            if leading and leading[0] is not other_than:
                return leading[0]
            if isinstance(bench, MemoryBench):
                await bench.pass_time(0.1)
            await asyncio.sleep(0.01)


async def test_one_of_several_leads_and_its_writes_are_taken(bench):
    async with candidates(bench.store, "a", "b", "c", clock=bench.clock) as group:
        leader = await leader_of(group, bench)
        await leader.write(leader.election.leadership)
        found = await bench.store.get(KEY)
        assert found.value.decode().split()[0] == leader.name
        assert found.lease_id
        assert check_history(await history(bench.store)) == 1


async def test_a_condition_that_fails_is_told_from_a_lost_lead(bench):
    async with candidates(bench.store, "a", clock=bench.clock) as group:
        reign = (await leader_of(group, bench)).election.leadership
        await bench.store.put("/x", b"1")
        result = await reign.txn([absent("/x")], [Put("/x", b"2")])
        assert not result.succeeded
        assert not reign.lost.is_set()


async def test_resigning_hands_over_at_once(bench):
    async with candidates(bench.store, "a", "b", clock=bench.clock) as group:
        first = await leader_of(group, bench)
        reign = first.election.leadership
        before_s = bench.clock.monotonic()
        await first.election.resign()
        second = await leader_of(group, other_than=first)
        assert bench.clock.monotonic() - before_s < TTL_S * 0.75
        assert reign.lost.is_set()
        assert not await first.write_late(reign)
        assert second.election.leadership.revision > reign.revision


async def test_a_leader_stays_while_time_passes(bench):
    async with candidates(bench.store, "a", "b", clock=bench.clock) as group:
        leader = await leader_of(group, bench)
        reign = leader.election.leadership
        for _ in range(30):
            await bench.pass_time(TTL_S / 15)
            assert leader.election.leadership is reign


@pytest.mark.parametrize("way", ["delete", "revoke"])
async def test_a_key_that_is_taken_away_ends_the_reign_at_once(bench, way):
    async with candidates(bench.store, "a", "b", clock=bench.clock) as group:
        first = await leader_of(group, bench)
        reign = first.election.leadership
        if way == "delete":
            await bench.store.delete(KEY)
        else:
            await bench.store.revoke((await bench.store.get(KEY)).lease_id)
        async with asyncio.timeout(DEADLINE_S):
            await reign.lost.wait()
        assert not await first.write_late(reign)
        await leader_of(group, bench)


async def test_a_leader_that_cannot_renew_stops_before_its_lease_ends(bench):
    async with candidates(bench.store, "a", "b", clock=bench.clock) as group:
        leader = await leader_of(group, bench)
        reign = leader.election.leadership
        await bench.fail()
        before_s = bench.clock.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            while leader.election.leadership is not None:
                await bench.pass_time(0.05)
        assert bench.clock.monotonic() - before_s <= TTL_S
        with pytest.raises(NotLeaderError):
            await leader_of_late_write(reign, leader)
        await bench.recover()
        await answers(bench.store)
        again = await leader_of(group, bench)
        await again.write(again.election.leadership)
        assert check_history(await history(bench.store)) == 1


async def leader_of_late_write(reign, leader):
    async with asyncio.timeout(DEADLINE_S):
        await reign.lost.wait()
    await leader.write(reign)


async def test_a_restored_store_has_a_new_election(bench):
    async with candidates(bench.store, "a", "b", clock=bench.clock) as group:
        first = await leader_of(group, bench)
        reign = first.election.leadership
        await bench.restore_empty()
        async with asyncio.timeout(DEADLINE_S):
            while not reign.lost.is_set():
                await bench.pass_time(0.05)
        await answers(bench.store)
        await leader_of(group, bench)
        assert not await first.write_late(reign)


async def test_the_history_before_the_leader_may_be_compacted_away(bench):
    async with candidates(bench.store, "a", clock=bench.clock) as group:
        first = await leader_of(group, bench)
        for _ in range(3):
            revision = await bench.store.put("/x", b"")
        await bench.compact(revision)
        async with candidates(bench.store, "b", clock=bench.clock) as (late,):
            await bench.pass_time(0.2)
            await first.election.resign()
            assert await leader_of([late], bench) is late


async def test_a_duty_runs_once_a_reign_and_is_cancelled_with_it(bench):
    begun, ended = [], []

    async def duty(reign):
        begun.append(reign)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(reign)

    async with candidates(bench.store, "a", clock=bench.clock) as (only,):
        only.scope.spawn(only.election.lead(duty, name="duty"), name="lead")
        await eventually(lambda: len(begun) == 1)
        await bench.store.delete(KEY)
        await eventually(lambda: len(ended) == 1)
        await leader_of([only], bench)
        await eventually(lambda: len(begun) == 2)
        assert begun[0] is not begun[1]


async def test_a_duty_waits_out_an_outage_of_the_store(bench):
    written = asyncio.Event()

    async def duty(reign):
        await reign.txn([], [Put(LOG + "a", str(reign.revision).encode())], patience_s=0.5)
        written.set()

    async with candidates(bench.store, "a", clock=bench.clock) as (only,):
        await leader_of([only], bench)
        await bench.fail()
        only.scope.spawn(only.election.lead(duty, name="duty"), name="lead")
        await bench.pass_time(0.2)
        await bench.recover()
        async with asyncio.timeout(DEADLINE_S):
            while not written.is_set():
                await bench.pass_time(0.1)
                await asyncio.sleep(0.01)
        check_history(await history(bench.store))


class OwnClock:
    """A clock that a test can hold while the others go on, as a stopped process's."""

    def __init__(self, real: ManualClock) -> None:
        self._real = real
        self._held_at_s: float | None = None

    def hold(self, held: bool) -> None:
        self._held_at_s = self._real.monotonic() if held else None

    def monotonic(self) -> float:
        return self._real.monotonic() if self._held_at_s is None else self._held_at_s

    def wall(self) -> float:
        return self.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await self._real.sleep(delay_s)


@pytest.mark.parametrize("seed", range(12))
async def test_no_write_of_a_stale_leader_is_ever_applied(seed):
    """Clocks that stand still, outages, keys and leases taken away, and late writes of all."""
    draw = random.Random(seed)
    clock = ManualClock()
    reigns = []
    async with MemoryStore(clock=clock) as store, contextlib.AsyncExitStack() as stack:
        clocks = [OwnClock(clock) for _ in range(3)]
        group: list[Candidate] = []
        for name, own in zip("abc", clocks, strict=True):
            (made,) = await stack.enter_async_context(candidates(store, name, clock=own))
            group.append(made)
        applied = 0
        for _ in range(400):
            await clock.advance(draw.choice([0, 0.05, 0.3, 1.0]))
            match draw.randrange(8):
                case 0:
                    draw.choice(clocks).hold(draw.random() < 0.5)
                case 1:
                    store.set_available(available=draw.random() < 0.7)
                case 2 if store.available and draw.random() < 0.3:
                    await store.delete(KEY)
                case _:
                    store.set_available(available=True)
            now = [(each, each.election.leadership) for each in group]
            reigns += [(each, reign) for each, reign in now if reign is not None]
            if reigns and store.available:
                applied += await late_write(*draw.choice(reigns[-6:]))
        store.set_available(available=True)
        assert check_history(await history(store)) == applied > 20
        assert len({reign.revision for _, reign in reigns}) > 2


async def late_write(candidate, reign):
    """True where it was applied; whether it may have been is for the history to say."""
    was_lost = reign.lost.is_set()
    try:
        return await candidate.write_late(reign)
    finally:
        if was_lost:
            reign.lost.set()


async def test_a_stopped_process_loses_its_late_writes(tmp_path):
    async with running_etcd(tmp_path) as etcd, etcd_store(etcd.endpoint) as store:
        group = [CandidateProcess(etcd.endpoint, name) for name in ("a", "b")]
        try:
            for _ in range(2):
                first = await writer_now(store, group)
                first.stop()
                second = await writer_now(store, group, other_than=first)
                first.go_on()
                assert second is not first
            third = await writer_now(store, group)
            third.kill()
            await writer_now(store, group, other_than=third)
        finally:
            for each in group:
                each.kill()
        assert check_history(await history(store)) >= 4


async def writer_now(store, group, *, other_than=None):
    """The process that wrote since now."""
    names = {each.name: each for each in group if each is not other_than}
    before = {name: await store.get(LOG + name) for name in names}
    found = []

    async def wrote():
        for name in names:
            kv = await store.get(LOG + name)
            if kv is not None and kv != before[name]:
                found.append(names[name])
                return True
        return False

    await eventually(wrote)
    return found[0]


@pytest.mark.parametrize("fault", ["kill", "stop"])
async def test_an_etcd_that_dies_or_stops_has_one_leader_afterwards(etcd: EtcdBench, fault):
    async with candidates(etcd.store, "a", "b", clock=etcd.clock) as group:
        first = await leader_of(group)
        reign = first.election.leadership
        if fault == "kill":
            etcd.etcd.kill()
            await reign_over(reign)
            await etcd.etcd.start()
        else:
            with etcd.etcd.stopped():
                await reign_over(reign)
        await answers(etcd.store)
        again = await leader_of(group)
        await again.write(again.election.leadership)
        # The same replica may lead on: then nobody else has led in between.
        if again is not first:
            assert not await first.write_late(reign)
        assert check_history(await history(etcd.store)) >= 1


async def reign_over(reign):
    async with asyncio.timeout(DEADLINE_S):
        await reign.lost.wait()


async def test_two_elections_on_one_store_do_not_mix(bench):
    other = election_on(bench.store, "x", clock=bench.clock)
    other.key = "/other/leader"
    async with candidates(bench.store, "a", clock=bench.clock) as (one,):
        one.scope.spawn(other.run(), name="other")
        await leader_of([one], bench)
        await eventually(lambda: other.leadership is not None)
