"""The fleet view and its watchers: nobody ever ends up with another fleet than the store's."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2

from control_plane.errors import NotReadyError
from control_plane.fleet import FleetView
from control_plane.keys import Keys
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import KeyValue
from control_plane.watch_fleet import FleetWatchers
from reelkit.clock import ManualClock

KEYS = Keys(prefix="/reelmesh", region="ap")
DEADLINE_S = 5.0


def stored(key: str, message, revision: int) -> KeyValue:
    return KeyValue(key, message.SerializeToString(), revision, revision, 1, 0)


def node(name: str, revision: int, **fields) -> KeyValue:
    return stored(KEYS.node(name), cp.NodeRecord(node_id=name, **fields), revision)


def model(digest: str, revision: int) -> KeyValue:
    return stored(KEYS.model(digest), model_pb2.ModelInfo(manifest_sha256=digest), revision)


def change(revision: int, *upserts: KeyValue, deleted=(), kind=ChangeKind.DELTA) -> MirrorChange:
    return MirrorChange(kind, revision, upserts, tuple(deleted))


def snapshot(revision: int, *upserts: KeyValue) -> MirrorChange:
    return change(revision, *upserts, kind=ChangeKind.SNAPSHOT)


def view_at(revision: int, *upserts: KeyValue, history_length: int = 1024) -> FleetView:
    view = FleetView(keys=KEYS, history_length=history_length)
    view.apply(snapshot(revision, *upserts))
    return view


class Gateway:
    """What a watcher makes of the responses."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.version = 0

    def take(self, response: cp.WatchFleetResponse) -> None:
        self.version = response.version
        if response.HasField("snapshot"):
            self.nodes = {n.node_id: n.pid for n in response.snapshot.nodes}
        for record in response.delta.upserted_nodes:
            self.nodes[record.node_id] = record.pid
        for name in response.delta.removed_node_ids:
            self.nodes.pop(name, None)


def fleet_of(view: FleetView) -> dict[str, int]:
    return {n.node_id: n.pid for n in view.snapshot().snapshot.nodes}


# The view


def test_what_came_after_a_version_is_one_delta():
    view = view_at(10, node("a", 10))
    view.apply(change(12, node("b", 12)))
    view.apply(change(14, node("b", 14, pid=2), model("m", 14)))
    view.apply(change(15, deleted=[KEYS.node("a")]))
    news = view.since(10)
    assert news.version == 15
    assert [(n.node_id, n.pid) for n in news.delta.upserted_nodes] == [("b", 2)]
    assert [m.manifest_sha256 for m in news.delta.upserted_models] == ["m"]
    assert list(news.delta.removed_node_ids) == ["a"]
    assert list(view.since(14).delta.removed_node_ids) == ["a"]
    assert not view.since(14).delta.upserted_nodes
    assert view.since(15).delta.ByteSize() == 0


def test_a_node_that_left_and_came_back_is_there():
    view = view_at(10, node("a", 10))
    view.apply(change(11, deleted=[KEYS.node("a")]))
    view.apply(change(12, node("a", 12, pid=7)))
    delta = view.since(10).delta
    assert [n.pid for n in delta.upserted_nodes] == [7]
    assert not delta.removed_node_ids


def test_ready_nodes_are_counted_as_they_come_turn_and_go():
    ready, lost = node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_UNHEALTHY
    view = view_at(10, node("a", 10, state=ready), node("b", 10, state=lost))
    assert view.ready_node_count == 1
    view.apply(change(11, node("a", 11, state=lost), node("b", 11, state=ready)))
    view.apply(change(12, node("c", 12, state=ready)))
    assert view.ready_node_count == 2
    view.apply(change(13, deleted=[KEYS.node("b")]))
    assert view.ready_node_count == 1
    view.apply(snapshot(5))
    assert view.ready_node_count == 0


@pytest.mark.parametrize("version", [0, 9, 16, 1_000])
def test_a_version_outside_the_history_needs_a_snapshot(version):
    view = view_at(10)
    view.apply(change(15, node("a", 15)))
    assert view.since(version) is None


def test_the_history_is_bounded_and_forgets_from_its_end():
    view = view_at(1, history_length=3)
    for revision in range(2, 8):
        view.apply(change(revision, node("a", revision, pid=revision)))
    assert view.since(3) is None
    assert [n.pid for n in view.since(4).delta.upserted_nodes] == [7]


def test_what_did_not_change_is_no_delta_but_moves_the_version():
    view = view_at(10, node("a", 10), model("m", 10))
    view.apply(change(11, node("a", 11), model("m", 11), deleted=[KEYS.node("never there")]))
    assert view.version == 11
    assert view.since(10).delta.ByteSize() == 0


def test_a_restore_voids_the_history():
    view = view_at(100, node("a", 100))
    epoch = view.epoch
    view.apply(snapshot(7, node("b", 7)))
    assert view.epoch == epoch + 1
    assert view.since(100) is None
    assert fleet_of(view) == {"b": 0}


def test_models_that_no_node_names_are_known():
    view = view_at(
        1,
        model("m1", 1),
        model("m2", 1),
        node("a", 1, models=[model_version("m1")]),
    )
    assert view.unnamed_models() == {"m2"}
    view.apply(change(2, deleted=[KEYS.node("a")]))
    assert view.unnamed_models() == {"m1", "m2"}


def model_version(digest: str):
    return node_pb2.ModelVersion(manifest_sha256=digest)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(1, 3)),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("restore"), st.sampled_from("abcd"), st.integers(1, 3)),
        # A gateway looks: by its number.
        st.tuples(st.just("look"), st.just(""), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_gateway_that_looks_now_and_then_always_has_the_fleet_of_its_version(script):
    view = view_at(100, history_length=4)
    gateways = [(Gateway(), [0]) for _ in range(3)]
    revision = 100
    for verb, name, number in script:
        revision += 1
        if verb == "put":
            view.apply(change(revision, node(name, revision, pid=number)))
        elif verb == "delete":
            view.apply(change(revision, deleted=[KEYS.node(name)]))
        elif verb == "restore":
            view.apply(snapshot(revision, node(name, revision, pid=number)))
        else:
            gateway, epoch = gateways[number]
            news = view.since(gateway.version) if epoch[0] == view.epoch else None
            gateway.take(view.snapshot() if news is None else news)
            epoch[0] = view.epoch
            assert gateway.nodes == fleet_of(view)


# Watchers


def watchers_of(view: FleetView, clock=None, *, heartbeat_s=30.0, resnapshot_s=300.0):
    return FleetWatchers(
        view, clock=clock or ManualClock(), heartbeat_s=heartbeat_s, resnapshot_s=resnapshot_s
    )


async def next_of(responses):
    async with asyncio.timeout(DEADLINE_S):
        return await anext(responses)


async def test_a_watcher_gets_a_snapshot_then_deltas():
    view = view_at(10, node("a", 10))
    responses = watchers_of(view).serve(cp.WatchFleetRequest())
    async with contextlib.aclosing(responses):
        first = await next_of(responses)
        assert first.version == 10
        assert [n.node_id for n in first.snapshot.nodes] == ["a"]
        view.apply(change(11, node("b", 11)))
        assert [n.node_id for n in (await next_of(responses)).delta.upserted_nodes] == ["b"]
        # A burst is one message.
        view.apply(change(12, deleted=[KEYS.node("a")]))
        view.apply(change(13, node("c", 13)))
        burst = await next_of(responses)
        assert burst.version == 13
        assert list(burst.delta.removed_node_ids) == ["a"]
        assert [n.node_id for n in burst.delta.upserted_nodes] == ["c"]


async def test_a_quiet_watch_beats_with_the_version_it_is_at():
    view = view_at(10)
    watchers = watchers_of(view, heartbeat_s=0.01)
    responses = watchers.serve(cp.WatchFleetRequest(after_version=10))
    async with contextlib.aclosing(responses):
        beat = await next_of(responses)
        assert beat.HasField("heartbeat")
        assert beat.version == 10
        assert watchers.count == 1
        view.apply(change(11, node("a", 11)))
        while not (response := await next_of(responses)).HasField("delta"):
            pass
        assert response.version == 11
    assert watchers.count == 0


async def test_a_watcher_from_a_replica_that_is_ahead_is_waited_for():
    view = view_at(10)
    responses = watchers_of(view).serve(cp.WatchFleetRequest(after_version=12))
    async with contextlib.aclosing(responses):
        waiting = asyncio.ensure_future(next_of(responses))
        await asyncio.sleep(0)
        view.apply(change(12, node("a", 12)))
        view.apply(change(13, node("b", 13)))
        response = await waiting
    # Not a snapshot of the past, but what came after the watcher's version.
    assert response.version == 13
    assert [n.node_id for n in response.delta.upserted_nodes] == ["b"]


async def test_a_watcher_that_was_too_slow_gets_a_snapshot():
    view = view_at(10, history_length=2)
    responses = watchers_of(view).serve(cp.WatchFleetRequest(after_version=10))
    async with contextlib.aclosing(responses):
        view.apply(change(11, node("a", 11)))
        assert (await next_of(responses)).version == 11
        for revision in range(12, 20):
            view.apply(change(revision, node("a", revision, pid=revision)))
        response = await next_of(responses)
    assert response.version == 19
    assert response.snapshot.nodes[0].pid == 19


async def test_a_restore_between_deltas_is_a_snapshot():
    view = view_at(10)
    responses = watchers_of(view).serve(cp.WatchFleetRequest(after_version=10))
    async with contextlib.aclosing(responses):
        for revision in (11, 12, 13):
            view.apply(change(revision, node("a", revision, pid=revision)))
        assert (await next_of(responses)).version == 13
        view.apply(snapshot(5, node("restored", 5)))
        response = await next_of(responses)
    assert response.version == 5
    assert [n.node_id for n in response.snapshot.nodes] == ["restored"]


async def test_a_restored_history_that_has_overtaken_the_old_one_is_not_mixed_with_it():
    view = view_at(10)
    responses = watchers_of(view).serve(cp.WatchFleetRequest(after_version=10))
    async with contextlib.aclosing(responses):
        view.apply(change(11, node("lost", 11)))
        assert (await next_of(responses)).version == 11
        # While the watcher was busy, the restored store has gone beyond version 11.
        view.apply(snapshot(5, node("restored", 5)))
        view.apply(change(12, node("new", 12)))
        response = await next_of(responses)
    assert {n.node_id for n in response.snapshot.nodes} == {"restored", "new"}


async def test_a_snapshot_comes_again_from_time_to_time():
    view, clock = view_at(10, node("a", 10)), ManualClock()
    watchers = watchers_of(view, clock, heartbeat_s=0.01, resnapshot_s=60)
    responses = watchers.serve(cp.WatchFleetRequest())
    async with contextlib.aclosing(responses):
        assert (await next_of(responses)).HasField("snapshot")
        assert (await next_of(responses)).HasField("heartbeat")
        await clock.advance(61)
        while not (response := await next_of(responses)).HasField("snapshot"):
            pass
        assert response.version == 10


async def test_a_stop_ends_watches():
    watchers = watchers_of(view_at(10))
    responses = watchers.serve(cp.WatchFleetRequest())
    async with contextlib.aclosing(responses):
        await next_of(responses)
        waiting = asyncio.ensure_future(next_of(responses))
        await asyncio.sleep(0)
        watchers.stop()
        with pytest.raises(NotReadyError):
            await waiting


async def test_a_view_that_was_never_filled_serves_nobody(monkeypatch):
    monkeypatch.setattr("control_plane.watch_fleet.FIRST_READ_S", 0.01)
    responses = watchers_of(FleetView(keys=KEYS)).serve(cp.WatchFleetRequest())
    with pytest.raises(NotReadyError):
        await next_of(responses)
