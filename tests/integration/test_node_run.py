"""Run, Cancel, Release and WatchStatus of a node agent over real gRPC."""

from __future__ import annotations

import hashlib

from tests.support.nodes import kind_of, node_config, run_request, running_node


async def test_a_run_streams_its_events_and_bytes(tmp_path):
    async with running_node(node_config(tmp_path)) as node:
        await node.until_ready()
        responses = await node.responses(run_request())
        assert kind_of(responses[0].event) == "accepted"
        events = [response.event for response in responses[1:]]
        assert [event.n for event in events] == list(range(1, len(events) + 1))
        kinds = [kind_of(event) for event in events]
        assert kinds == ["started"] + ["progress"] * 4 + ["chunk"] * 2 + ["completed"]
        video = b"".join(event.chunk.data for event in events)
        completed = events[-1].completed
        assert completed.sha256 == hashlib.sha256(video).hexdigest()
        assert completed.size_bytes == len(video)
        assert {event.attempt for event in events} == {1}
