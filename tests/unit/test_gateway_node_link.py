"""What placement is told of a node, by the clock alone."""

from reelmesh.v1 import control_plane_service_pb2, node_pb2

from gateway.fleet.node_link import BUSY_HOLD_S, NodeLink
from reelkit.clock import ManualClock
from reelkit.rpc import internal_channel


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
