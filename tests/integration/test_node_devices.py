"""Devices in a node's status, and what the node does about one that failed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reelmesh.v1 import node_pb2

from node_agent.fake_gpus import FakeGpus
from node_agent.service import SERVICE_NAME
from reelkit.rpc import internal_channel
from tests.support.nodes import DEADLINE_S, kind_of, node_config, run_request, running_node

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
QUICK = {"every_s": 0.02, "timeout_s": 0.2}


@contextlib.asynccontextmanager
async def gpu_node(tmp_path, gpus, *devices):
    """A node whose fake workers claim to be on those devices."""
    workers = {"devices": list(devices), "respawn_first_s": 0.05}
    config = node_config(tmp_path, workers=workers, devices=QUICK)
    async with running_node(config, gpus=gpus) as node:
        await node.until(lambda s: s.free_slots == 2 * len(devices))
        yield node


async def test_a_cpu_node_reports_the_memory_of_its_processes(tmp_path):
    async with running_node(node_config(tmp_path, devices=QUICK)) as node:
        # Its worker's is in it: more than the agent alone.
        status = await node.until(lambda s: bool(s.devices) and bool(s.free_slots))
        assert status.devices[0].device == "cpu"
        assert 0 < status.devices[0].memory_used_bytes < status.devices[0].memory_total_bytes


async def test_a_gpu_node_reports_its_figures(tmp_path):
    gpus = FakeGpus(count=2)
    gpus.set(1, temperature_c=66.0, ecc_errors=2)
    async with gpu_node(tmp_path, gpus, "cuda:0", "cuda:1") as node:
        status = await node.until(lambda s: len(s.devices) == 2)
        assert [device.device for device in status.devices] == ["cuda:0", "cuda:1"]
        assert status.devices[1].temperature_c == 66.0
        assert status.devices[1].ecc_errors == 2
        assert status.reason == ""


async def test_a_fatal_xid_makes_the_node_unhealthy_with_its_reason(tmp_path):
    gpus = FakeGpus()
    async with gpu_node(tmp_path, gpus, "cuda:0") as node:
        await node.until(lambda s: bool(s.devices))
        gpus.raise_xid(0, 79)
        status = await node.until(lambda s: s.state == node_pb2.NODE_STATE_UNHEALTHY)
        assert "cuda:0: XID error 79" in status.reason
        assert list(status.devices[0].xid_errors) == [79]
        assert status.free_slots == 0
        async with internal_channel(node.app.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
            answers = stub.Watch(request)
            async with asyncio.timeout(DEADLINE_S):
                while (await answers.read()).status != NOT_SERVING:
                    pass
        (answer,) = await node.responses(run_request())
        assert answer.HasField("busy")


async def test_one_failed_device_of_two_costs_its_worker_and_not_the_node(tmp_path):
    gpus = FakeGpus(count=2)
    async with gpu_node(tmp_path, gpus, "cuda:0", "cuda:1") as node:
        await node.until(lambda s: len(s.devices) == 2)
        gpus.raise_xid(1, 95)
        status = await node.until(lambda s: s.free_slots == 2)
        assert status.state == node_pb2.NODE_STATE_READY
        assert "XID error 95" in status.reason
        assert [worker.state for worker in status.workers] == [
            node_pb2.WORKER_STATE_IDLE,
            node_pb2.WORKER_STATE_DEAD,
        ]
        for job_id in ("a", "b"):
            assert kind_of((await node.events(run_request(job_id)))[-1]) == "completed"


async def test_heat_is_reported_and_the_node_works_on(tmp_path):
    gpus = FakeGpus()
    gpus.set(0, temperature_c=97.0, ecc_errors=0)
    async with gpu_node(tmp_path, gpus, "cuda:0") as node:
        status = await node.until(lambda s: "°C" in s.reason)
        assert status.state == node_pb2.NODE_STATE_READY
        assert kind_of((await node.events(run_request()))[-1]) == "completed"


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_driver_that_hangs_holds_up_nothing(tmp_path, when):
    gpus = FakeGpus()
    if when == "at once":
        gpus.answering.clear()
    async with gpu_node(tmp_path, gpus, "cuda:0") as node:
        gpus.answering.clear()
        await node.until(lambda s: "has not answered" in s.reason)
        assert kind_of((await node.events(run_request()))[-1]) == "completed"
        # Nor does it keep the agent from leaving: the block ends.
