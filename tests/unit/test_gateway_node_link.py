"""What placement is told of a node, by the clock and by what the node answered."""

import pytest
from reelmesh.v1 import control_plane_service_pb2, node_pb2, node_service_pb2

from gateway.fleet.node_link import BUSY_HOLD_S, NodeLink
from reelkit.clock import ManualClock
from reelkit.rpc import internal_channel


def ready(version: int, **fields) -> node_pb2.NodeStatus:
    fields = {"free_slots": 1, "incarnation": "life-1", **fields}
    return node_pb2.NodeStatus(state=node_pb2.NODE_STATE_READY, version=version, **fields)


async def test_a_refusal_holds_against_statuses_that_are_older_than_it():
    clock = ManualClock()
    async with internal_channel("127.0.0.1:1") as channel:
        link = NodeLink(
            control_plane_service_pb2.NodeRecord(node_id="n0"),
            channel=channel,
            clock=clock,
            on_change=lambda _link: None,
            on_close=lambda _link: None,
        )

        def work_s() -> float:
            return link.view(clock.monotonic(), routable=True).remaining_work_s

        link._take(ready(3))
        refusal = node_service_pb2.Busy(remaining_work_s=20.0, status_version=5, too_long=True)
        link.answered_busy(refusal)
        # It has a slot, and so much to do before it.
        assert link.view(clock.monotonic(), routable=True).free_slots == 1
        assert work_s() == pytest.approx(20.0)
        link._take(ready(5))
        await clock.advance(5.0)
        assert work_s() == pytest.approx(15.0)
        link._take(ready(6, remaining_work_s=2.0))
        assert work_s() == pytest.approx(2.0)
        link.answered_busy(refusal)
        link._take(ready(1, incarnation="life-2"))
        assert work_s() == 0.0


async def test_the_hold_after_busy_ends_by_itself():
    clock = ManualClock()
    async with internal_channel("127.0.0.1:1") as channel:
        link = NodeLink(
            control_plane_service_pb2.NodeRecord(node_id="n0"),
            channel=channel,
            clock=clock,
            on_change=lambda _link: None,
            on_close=lambda _link: None,
        )
        link.status = node_pb2.NodeStatus(state=node_pb2.NODE_STATE_READY, free_slots=1)
        link.connected = True
        assert link.view(clock.monotonic(), routable=True).free_slots == 1
        link.answered_busy()
        assert link.view(clock.monotonic(), routable=True).free_slots == 0
        await clock.advance(BUSY_HOLD_S / 2)
        assert link.view(clock.monotonic(), routable=True).free_slots == 0
        await clock.advance(BUSY_HOLD_S)
        # No status came: the one that told of the free slot may be long past.
        assert link.view(clock.monotonic(), routable=True).free_slots == 1
