"""What nodes are told follows the registry, and nothing is told before that was read."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import registry_pb2 as reg

from control_plane.keys import GlobalKeys
from control_plane.registry.book import ModelRegistry
from control_plane.registry.wanted import SETTLE_S, WantedWeightsPlan
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import KeyValue
from control_plane.store.writer import FencedWriter
from reelkit.clock import ManualClock
from reelkit.tasks import TaskScope

KEYS = GlobalKeys(prefix="/reelmesh")
MODEL = reg.RegisteredModel(
    name="m", version="v1", manifest_sha256="d" * 64, state=reg.REGISTRATION_STATE_ACTIVE
)
ORDER = reg.PrefetchOrder(name="m", version="v1")


def kv(key, message, revision=1):
    return KeyValue(key, message.SerializeToString(), revision, revision, 1, 0)


def change(*upserts, deleted=(), kind=ChangeKind.DELTA):
    return MirrorChange(kind, 1, upserts, deleted)


class Bench:
    def __init__(self, scope, store):
        self.clock = ManualClock()
        self.nodes = [cp.NodeRecord(node_id="n0", address="10.0.0.1:1")]
        self.plan = WantedWeightsPlan(
            region="ap", nodes=lambda: tuple(self.nodes), clock=self.clock
        )
        writer = FencedWriter(store, prefix="w/", clock=self.clock)
        self.registry = ModelRegistry(
            keys=KEYS, store=store, writer=writer, clock=self.clock, on_change=self.plan.touch
        )
        self.plan.follow(self.registry)
        scope.spawn(self.plan.run(), name="plan")

    async def settle(self):
        await asyncio.sleep(0)
        await self.clock.advance(SETTLE_S)
        await self.clock.advance(SETTLE_S)

    def versions(self, node_id="n0"):
        weights = self.plan.of(node_id)
        return None if weights is None else [each.model.version for each in weights.wanted]


@pytest.fixture
async def bench():
    clock = ManualClock()
    async with MemoryStore(clock=clock) as store, TaskScope("test") as scope:
        yield Bench(scope, store)


async def test_nothing_is_told_before_the_registry_was_read(bench):
    bench.plan.touch()
    await bench.settle()
    assert bench.versions() is None
    bench.registry.apply(change(kind=ChangeKind.SNAPSHOT))
    await bench.settle()
    assert bench.versions() == []


async def test_orders_wake_those_whom_they_are_for(bench):
    bench.nodes.append(cp.NodeRecord(node_id="n1", address="10.0.0.2:1"))
    first, second = asyncio.Event(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bench.plan.waking("n0", first))
        stack.enter_context(bench.plan.waking("n1", second))
        model = kv(KEYS.model_version("m", "v1"), MODEL)
        bench.registry.apply(change(model, kind=ChangeKind.SNAPSHOT))
        await bench.settle()
        first.clear()
        second.clear()
        order = reg.PrefetchOrder(name="m", version="v1", node_ids=["n1"])
        bench.registry.apply(change(kv(KEYS.prefetch("m", "v1"), order)))
        await bench.settle()
        assert (first.is_set(), second.is_set()) == (False, True)
        assert (bench.versions("n0"), bench.versions("n1")) == ([], ["v1"])
        second.clear()
        bench.registry.apply(change(deleted=[KEYS.prefetch("m", "v1")]))
        await bench.settle()
        assert (second.is_set(), bench.versions("n1")) == (True, [])


async def test_a_version_that_is_retired_or_gone_is_not_wanted(bench):
    key, order = KEYS.model_version("m", "v1"), kv(KEYS.prefetch("m", "v1"), ORDER)
    bench.registry.apply(change(kv(key, MODEL), order, kind=ChangeKind.SNAPSHOT))
    await bench.settle()
    assert bench.versions() == ["v1"]
    retired = reg.RegisteredModel()
    retired.CopyFrom(MODEL)
    retired.state = reg.REGISTRATION_STATE_RETIRED
    bench.registry.apply(change(kv(key, retired)))
    await bench.settle()
    assert bench.versions() == []


async def test_a_record_that_cannot_be_read_leaves_what_was(bench):
    key, order = KEYS.model_version("m", "v1"), kv(KEYS.prefetch("m", "v1"), ORDER)
    bench.registry.apply(change(kv(key, MODEL), order, kind=ChangeKind.SNAPSHOT))
    bench.registry.apply(change(KeyValue(key, b"\xff\xff", 2, 2, 2, 0)))
    await bench.settle()
    assert bench.versions() == ["v1"]
