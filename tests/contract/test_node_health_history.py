"""Histories of nodes: written by the leader, whole and once, through changes of the leader."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import pytest
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane import history as histories
from control_plane.history import (
    KEEP_GONE_S,
    MAX_EVENTS,
    SWEEP_EVERY_S,
    HistoryKeeper,
    appended,
    falls_ago_s,
)
from control_plane.keys import Keys
from control_plane.store.memory import MemoryStore
from control_plane.store.port import MAX_VALUE_BYTES, Delete, Put
from reelkit.clock import ManualClock
from reelkit.tasks import TaskScope
from tests.support.elections import election_on

KEYS = Keys(prefix="/r", region="ap")
LEASE_S = 10.0
READY = node_pb2.NODE_STATE_READY
UNHEALTHY = node_pb2.NODE_STATE_UNHEALTHY
DRAINING = node_pb2.NODE_STATE_DRAINING
STARTING = node_pb2.NODE_STATE_STARTING
LOST = node_pb2.NODE_STATE_LOST
GONE = node_pb2.NODE_STATE_UNSPECIFIED


class Bench:
    """A store, and leaders that come and go."""

    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self.leaders = 0

    @contextlib.asynccontextmanager
    async def leader(self):
        """A replica that leads and keeps histories while the block runs."""
        self.leaders += 1
        async with TaskScope("leader") as scope:
            election = election_on(self.store, f"r{self.leaders}", clock=self.clock)
            election.key = KEYS.leader
            keeper = HistoryKeeper(
                store=self.store,
                keys=KEYS,
                clock=self.clock,
                lease_ttl_s=LEASE_S,
                max_share=0.55,
                relist_s=300,
            )
            scope.spawn(election.run(), name="run")
            scope.spawn(election.lead(keeper.keep, name="keep"), name="keep")
            await self.settle()
            yield election
            await election.resign()

    async def settle(self, seconds=1.0):
        for _ in range(int(seconds / 0.5)):
            await self.clock.advance(0.5)
            for _ in range(30):
                await asyncio.sleep(0)

    async def write(self, node, state, reason="", **fields):
        record = cp.NodeRecord(node_id=node, state=state, reason=reason, **fields)
        await self.store.put(KEYS.node(node), record.SerializeToString())
        await self.settle()

    async def vanish(self, *nodes, goodbye=False):
        ops = [Delete(KEYS.node(node)) for node in nodes]
        if goodbye:
            left = cp.NodeRecord(state=DRAINING, reason="left in good order")
            ops += [Put(KEYS.departed(node), left.SerializeToString()) for node in nodes]
        await self.store.txn([], ops)
        await self.settle()

    async def events(self, node="n0"):
        found = await self.store.get(KEYS.history(node))
        if found is None:
            return []
        events = op.NodeHistory.FromString(found.value).events
        for before, after in itertools.pairwise(events):
            assert getattr(after, "from") == before.to
            assert after.at.ToNanoseconds() >= before.at.ToNanoseconds()
        return [(event.to, event.reason) for event in events]

    async def departed(self, node="n0"):
        found = await self.store.get(KEYS.departed(node))
        return cp.NodeRecord.FromString(found.value) if found is not None else None


@pytest.fixture
async def bench():
    clock = ManualClock(start_s=1_700_000_000.0)
    async with MemoryStore(clock=clock) as store:
        yield Bench(store, clock)


async def test_each_change_of_state_is_an_event_with_its_reason(bench):
    async with bench.leader():
        await bench.write("n0", STARTING)
        await bench.write("n0", READY)
        await bench.write("n0", READY, units_per_second=5)
        await bench.write("n0", UNHEALTHY, "it does not answer")
        assert await bench.events() == [
            (STARTING, ""),
            (READY, ""),
            (UNHEALTHY, "it does not answer"),
        ]


async def test_an_event_has_the_time_of_the_change(bench):
    record = cp.NodeRecord(node_id="n0", state=READY)
    await bench.write("n0", STARTING)
    async with bench.leader():
        record.state_since.FromNanoseconds(int((bench.clock.wall() - 0.25) * 1e9))
        await bench.store.put(KEYS.node("n0"), record.SerializeToString())
        await bench.settle()
        found = await bench.store.get(KEYS.history("n0"))
        newest = op.NodeHistory.FromString(found.value).events[-1]
        assert newest.at == record.state_since


async def test_a_node_whose_lease_ran_out_is_lost_after_a_look_and_back_when_it_returns(bench):
    async with bench.leader():
        await bench.write("n0", READY)
        await bench.vanish("n0")
        assert await bench.events() == [(READY, "")]
        await bench.settle(LEASE_S)
        assert (await bench.events())[-1] == (LOST, "its lease ran out without a goodbye")
        assert (await bench.departed()).state == LOST
        await bench.write("n0", READY)
        assert (await bench.events())[-1] == (READY, "back")
        assert await bench.departed() is None


async def test_a_node_that_returns_within_the_look_was_never_lost(bench):
    async with bench.leader():
        await bench.write("n0", READY)
        await bench.vanish("n0")
        await bench.write("n0", READY)
        await bench.settle(2 * LEASE_S)
        assert await bench.events() == [(READY, "")]


async def test_a_goodbye_is_no_loss(bench):
    async with bench.leader():
        await bench.write("n0", DRAINING, "shutting down")
        await bench.vanish("n0", goodbye=True)
        assert (await bench.events())[-1] == (GONE, "left in good order")
        assert await bench.departed() is None
        await bench.settle(2 * LEASE_S)
        assert len(await bench.events()) == 2


async def test_a_restarted_agent_is_seen_though_its_state_is_the_same(bench):
    async with bench.leader():
        await bench.write("n0", READY, incarnation="1")
        await bench.write("n0", READY, incarnation="2")
        assert (await bench.events())[-1] == (READY, "its agent was started anew")


async def test_nodes_that_vanish_together_are_not_called_lost(bench):
    async with bench.leader():
        for number in range(5):
            await bench.write(f"n{number}", READY)
        await bench.vanish("n0", "n1")
        await bench.settle(1)
        await bench.vanish("n2")
        await bench.settle(2 * LEASE_S)
        for node in ("n0", "n1", "n2"):
            state, reason = (await bench.events(node))[-1]
            assert state == GONE
            assert "3 of 5 nodes at once" in reason
            assert (await bench.departed(node)).state == GONE
        await bench.write("n0", READY)
        assert await bench.departed("n0") is None
        # Much later one more is gone, alone: that is believed.
        await bench.settle(3 * LEASE_S)
        await bench.vanish("n3")
        await bench.settle(LEASE_S)
        assert (await bench.events("n3"))[-1][0] == LOST


async def test_a_new_leader_repeats_nothing_and_finds_what_was_missed(bench):
    async with bench.leader():
        await bench.write("n0", READY)
        await bench.write("n1", READY)
        await bench.write("n2", READY)
    await bench.write("n0", UNHEALTHY, "in between")
    await bench.vanish("n1")
    async with bench.leader():
        await bench.settle(LEASE_S)
    async with bench.leader():
        await bench.settle(LEASE_S)
        assert await bench.events("n0") == [(READY, ""), (UNHEALTHY, "in between")]
        assert [state for state, _ in await bench.events("n1")] == [READY, LOST]
        assert await bench.events("n2") == [(READY, "")]


async def test_a_leader_that_lost_its_lead_writes_nothing(bench):
    async with bench.leader() as first:
        await bench.write("n0", READY)
        reign = first.leadership
        await bench.store.delete(KEYS.leader)
        reign.lost.clear()
        await bench.write("n0", UNHEALTHY)
        await bench.settle()
        # Whoever leads now wrote it once.
        assert [state for state, _ in await bench.events()] == [READY, UNHEALTHY]


async def test_an_outage_of_the_store_leaves_no_gap(bench):
    async with bench.leader():
        await bench.write("n0", READY)
        bench.store.set_available(available=False)
        await bench.settle(3)
        bench.store.set_available(available=True)
        await bench.write("n0", UNHEALTHY, "x")
        await bench.settle(8)
        assert await bench.events() == [(READY, ""), (UNHEALTHY, "x")]


async def test_what_is_gone_for_a_day_is_forgotten(bench):
    async with bench.leader():
        await bench.write("n0", READY)
        await bench.write("n1", READY)
        await bench.vanish("n0")
        await bench.settle(LEASE_S)
        await bench.clock.advance(KEEP_GONE_S - 600)
        await bench.settle()
        assert await bench.events()
        await bench.clock.advance(SWEEP_EVERY_S + 600)
        await bench.settle(10)
        assert await bench.events() == []
        assert await bench.departed() is None
        assert await bench.events("n1")


def test_a_history_is_bounded_in_events_and_bytes():
    history = op.NodeHistory(node_id="n" * 63)
    for number in range(200):
        state = READY if number % 2 else UNHEALTHY
        history = appended(history, to=state, reason=f"{number} " + "ж" * 500, at_s=1.7e9 + number)
    assert len(history.events) == MAX_EVENTS
    assert history.events[-1].reason.startswith("199 ")
    assert history.ByteSize() < MAX_VALUE_BYTES


def test_falls_are_read_from_a_history():
    history = op.NodeHistory()
    for at_s, state in enumerate([READY, UNHEALTHY, READY, LOST, READY, DRAINING, READY, GONE]):
        history = appended(history, to=state, reason="", at_s=100 + at_s)
    value = history.SerializeToString()
    assert falls_ago_s(value, now_s=110, within_s=600) == [9, 7]
    assert falls_ago_s(value, now_s=110, within_s=8) == [7]
    assert falls_ago_s(b"\xff", now_s=110, within_s=8) == []


@pytest.mark.parametrize("seed", range(5))
async def test_the_newest_event_agrees_with_the_record_whoever_led(bench, seed):
    draw = random.Random(seed)
    nodes = [f"n{number}" for number in range(6)]
    states: dict[str, int] = {}
    for _ in range(4):
        async with contextlib.AsyncExitStack() as stack:
            if draw.random() < 0.8:
                await stack.enter_async_context(bench.leader())
            for _ in range(12):
                node = draw.choice(nodes)
                if node in states and draw.random() < 0.2:
                    del states[node]
                    await bench.vanish(node)
                else:
                    states[node] = draw.choice([STARTING, READY, UNHEALTHY])
                    await bench.write(node, states[node])
    async with bench.leader():
        await bench.settle(2 * LEASE_S)
        for node in nodes:
            events = await bench.events(node)
            changes = [state for state, _ in events]
            assert all(a != b for a, b in itertools.pairwise(changes))
            if node in states:
                assert changes[-1] == states[node]
            elif events:
                assert changes[-1] in (LOST, GONE)


def test_the_settling_time_outlasts_the_spread_of_leases_that_end_together():
    # Renewals come at least every third of a lease.
    assert histories.SETTLE_SHARE > 1 / 3


async def test_the_end_of_a_reign_is_no_failure_that_is_logged(bench, capfd):
    async with bench.leader():
        await bench.write("n0", READY)
        # Lost without a word to this replica, in the middle of its work.
        await bench.store.delete(KEYS.leader)
        await bench.write("n0", UNHEALTHY)
        bench.store.set_available(available=False)
        await bench.settle(2)
        bench.store.set_available(available=True)
        await bench.settle(2)
    assert "task failed" not in capfd.readouterr().out
