"""Run, Cancel, Release and WatchStatus of a node agent over real gRPC."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_service_pb2 import WatchStatusRequest

from node_agent.service import SERVICE_NAME
from reelkit.rpc import internal_channel
from reelkit.tasks import TaskScope
from tests.support.fakeworker import FakeLauncher, Script, fake_spec
from tests.support.nodes import DEADLINE_S, kind_of, node_config, run_request, running_node

SHORT_GRACE = {"owner_grace_s": 0.4, "keep_s": 60.0}


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info.reason


@pytest.fixture
async def node(tmp_path):
    async with running_node(node_config(tmp_path, runs=SHORT_GRACE)) as node:
        await node.until_ready()
        yield node


async def test_a_run_streams_its_events_and_bytes(node):
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


async def test_a_finished_run_is_replayed_from_any_event_until_released(node):
    events = await node.events(run_request())
    again = await node.events(run_request(after_n=5))
    assert again == events[5:]
    await node.release("job-1")
    await node.release("job-1")
    assert node.app.table.kept_bytes() == 0


async def test_several_readers_get_the_same_bytes_once_serialised(node):
    streams = [node.events(run_request(prompt="slow")) for _ in range(5)]
    first, *others = await asyncio.gather(*streams)
    assert all(other == first for other in others)


async def test_a_third_job_is_told_busy_and_the_stream_ends(node):
    first = node.stub.Run(run_request("a", prompt="slow"))
    await node.read_until(first, "started")
    second = node.stub.Run(run_request("b", prompt="slow"))
    await node.read_until(second, "accepted")
    (only,) = await node.responses(run_request("c"))
    assert only.busy.remaining_work_s > 0
    status = await node.until(lambda s: len(s.executions) == 2)
    assert status.free_slots == 0
    assert [execution.running for execution in status.executions] == [True, False]


async def test_an_adopter_gets_the_live_attempt_from_its_start(node):
    owner = node.stub.Run(run_request(prompt="slow"))
    await node.read_until(owner, "progress")
    adopter = run_request(prompt="slow", epoch=2, attempt=1025, after_n=3)
    events = await node.events(adopter)
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert {event.attempt for event in events} == {1}
    assert kind_of(events[-1]) == "completed"
    with pytest.raises(aio.AioRpcError) as refused:
        await node.read_until(owner, "completed")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value) == "STALE_OWNER"


async def test_a_higher_try_starts_anew_and_a_lower_one_is_stale(node):
    former = node.stub.Run(run_request(prompt="slow"))
    await node.read_until(former, "started")
    newer = run_request(prompt="a red ball", attempt=2, **{"try": 2})
    events = await node.events(newer)
    assert {event.attempt for event in events} == {2}
    for stale in (run_request(), run_request(**{"try": 1})):
        with pytest.raises(aio.AioRpcError) as refused:
            await node.responses(stale)
        assert reason_of(refused.value) == "STALE_OWNER"


async def test_cancel_stops_a_running_job_within_a_step(node):
    call = node.stub.Run(run_request(prompt="slow"))
    await node.read_until(call, "progress")
    assert await node.cancel("job-1", reason="operator")
    events = await node.read_until(call, "cancelled")
    assert events[-1].cancelled.reason == "operator"
    assert sum(kind_of(event) == "progress" for event in events) <= 1
    assert await node.cancel("job-1") is False
    await node.until(lambda s: s.free_slots == 2)


async def test_cancelling_waiting_jobs_again_and_again_never_fills_the_worker(node):
    running = node.stub.Run(run_request("long", prompt="slow"))
    await node.read_until(running, "started")
    for index in range(8):
        waiting = node.stub.Run(run_request(f"w{index}"))
        await node.read_until(waiting, "accepted")
        await node.cancel(f"w{index}")
        events = await node.read_until(waiting, "cancelled")
        assert [kind_of(event) for event in events] == ["cancelled"]
    await node.read_until(running, "completed")
    assert kind_of((await node.events(run_request("last")))[-1]) == "completed"


async def test_a_run_whose_stream_was_given_up_can_be_attached_to(node):
    call = node.stub.Run(run_request(prompt="slow"))
    await node.read_until(call, "progress")
    call.cancel()
    events = await node.events(run_request(prompt="slow", epoch=2, attempt=1025))
    assert kind_of(events[-1]) == "completed"


@pytest.mark.parametrize("last", ["started", "completed"])
async def test_a_client_that_leaves_is_no_error_in_the_log(node, caplog, last):
    for index in range(20):
        call = node.stub.Run(run_request(f"job-{last}-{index}"))
        await node.read_until(call, last)
        # As a gateway does that has what it wants: the end of the stream is not read.
        call.cancel()
        gc.collect()
    await node.until(lambda s: not s.executions)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_run_that_nobody_wants_is_cancelled_after_the_grace_time(node):
    spec = fake_spec("slow", steps=100)
    call = node.stub.Run(run_request(spec=spec))
    await node.read_until(call, "started")
    await node.until(lambda s: bool(s.executions))
    call.cancel()
    await node.until(lambda s: not s.executions)
    events = await node.events(run_request(spec=spec))
    assert events[-1].cancelled.reason == "disconnected"


async def test_the_deadline_ends_waiting_and_running_jobs(node):
    spec = fake_spec("slow", steps=100)
    running = node.events(run_request("a", spec=spec, deadline_s=0.5))
    waiting = node.events(run_request("b", spec=spec, deadline_s=0.5))
    for events in await asyncio.gather(running, waiting):
        assert events[-1].cancelled.reason == "deadline"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (run_request(""), "job_id"),
        (run_request(epoch=0), "epoch"),
        (run_request(deadline_s=float("nan")), "deadline_s"),
        (run_request(spec=fake_spec(num_frames=10)), "spec.num_frames"),
        (run_request(spec=fake_spec(width=128)), "spec.width"),
        (run_request(spec=fake_spec(guidance_scale=float("nan"))), "spec.guidance_scale"),
        (run_request(spec=fake_spec(steps=10**9)), "spec.steps"),
        (run_request(spec=fake_spec("")), "spec.prompt"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_with_the_field(node, request_, field):
    with pytest.raises(aio.AioRpcError) as refused:
        await node.responses(request_)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refused.value)
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == field


async def test_another_models_job_is_refused_as_such(node):
    with pytest.raises(aio.AioRpcError) as refused:
        await node.responses(run_request(spec=fake_spec(model_version="v2")))
    assert reason_of(refused.value) == "MODEL_NOT_LOADED"


async def test_a_jobs_own_failure_is_passed_on(node):
    events = await node.events(run_request(prompt="fail"))
    assert [kind_of(event) for event in events] == ["started", "failed"]
    assert events[-1].failed.code == "model_error"
    assert not events[-1].failed.retryable


async def test_the_status_is_pushed_and_its_version_rises(node):
    versions: list[int] = []
    states: set[int] = set()
    statuses = node.stub.WatchStatus(WatchStatusRequest())

    async def take() -> bool:
        status = (await statuses.read()).status
        versions.append(status.version)
        states.update(worker.state for worker in status.workers)
        return bool(status.executions)

    async with asyncio.timeout(DEADLINE_S), TaskScope("test") as scope:
        await take()
        running = scope.spawn(node.events(run_request(prompt="slow")), name="run")
        while not await take():
            pass
        while await take():
            pass
        await running
    assert versions == sorted(set(versions))
    assert node_pb2.WORKER_STATE_BUSY in states
    # Steps come every 0.2 s and are told at most four times a second.
    assert len(versions) < 12


async def test_status_names_each_run_so_that_an_adopter_finds_it(node):
    call = node.stub.Run(run_request("a", prompt="slow", epoch=3, attempt=2049))
    await node.read_until(call, "started")
    status = await node.until(lambda s: any(e.running for e in s.executions))
    (execution,) = status.executions
    claim = (execution.epoch, getattr(execution, "try"), execution.attempt)
    assert (execution.job_id, claim) == ("a", (3, 1, 2049))


async def test_status_names_what_gateways_place_by(node):
    await node.events(run_request())
    status = await node.until(lambda s: s.free_slots == 2)
    assert status.node_id == "ap-node-0"
    assert status.workers[0].id == "ap-node-0/worker-0"
    assert status.workers[0].pid == node.launcher.handles[0].pid
    assert [(m.name, m.version) for m in status.models] == [("fake", "v1")]
    assert status.units_per_second > 0
    assert status.remaining_work_s == 0
    assert len(status.incarnation) == 16


async def test_health_follows_readiness(tmp_path):
    answers = health_pb2.HealthCheckResponse
    async with (
        running_node(node_config(tmp_path)) as node,
        internal_channel(node.app.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        async with asyncio.timeout(DEADLINE_S):
            while (await watch.read()).status != answers.SERVING:
                pass
            node.app.board.wish(cordoned=True)
            assert (await watch.read()).status == answers.NOT_SERVING
            alive = await health.Check(health_pb2.HealthCheckRequest())
        assert alive.status == answers.SERVING, "the process itself is well"


async def test_the_callers_trace_reaches_the_worker(node, monkeypatch):
    monkeypatch.setattr("node_agent.service._tracer", TracerProvider().get_tracer("test"))
    sent: list[str] = []
    generate = node.app.supervisor.generate
    monkeypatch.setattr(
        node.app.supervisor,
        "generate",
        lambda execution: (sent.append(execution.traceparent), generate(execution)),
    )
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    async with asyncio.timeout(DEADLINE_S):
        async for _ in node.stub.Run(run_request(), metadata=metadata):
            pass
    assert sent[0].split("-")[1] == trace_id
    assert sent[0].split("-")[2] != "b7ad6b7169203331"
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_draining_finishes_what_runs_and_admits_nothing(tmp_path):
    async with running_node(node_config(tmp_path)) as node, TaskScope("test") as scope:
        await node.until_ready()
        running = node.stub.Run(run_request("a", prompt="slow"))
        await node.read_until(running, "started")
        draining = scope.spawn(node.app.drain(), name="drain")
        await node.until(lambda s: s.state == node_pb2.NODE_STATE_DRAINING)
        (only,) = await node.responses(run_request("b"))
        assert only.busy.remaining_work_s >= 1
        await node.read_until(running, "completed")
        async with asyncio.timeout(DEADLINE_S):
            await draining


async def test_what_outlasts_the_drain_deadline_fails_as_retryable(tmp_path):
    config = node_config(tmp_path, drain_timeout_s=0.3)
    async with running_node(config) as node:
        await node.until_ready()
        running = node.stub.Run(run_request(spec=fake_spec("slow", steps=100)))
        await node.read_until(running, "started")
        async with asyncio.timeout(DEADLINE_S):
            await node.app.drain()
        failed = (await node.read_until(running, "failed"))[-1].failed
        assert (failed.code, failed.retryable) == ("node_shutdown", True)


async def test_large_chunks_pass_whole(tmp_path):
    script = Script(chunks=3, chunk_bytes=1024 * 1024)
    async with running_node(node_config(tmp_path), launcher=FakeLauncher([script])) as node:
        await node.until_ready()
        events = await node.events(run_request())
        video = b"".join(event.chunk.data for event in events)
        assert hashlib.sha256(video).hexdigest() == events[-1].completed.sha256
        assert len(video) == 3 * 1024 * 1024
