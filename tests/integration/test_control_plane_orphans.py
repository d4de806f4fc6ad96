"""JobService over real gRPC: errors as statuses, and the orphans of gateways that go."""

import asyncio
import contextlib

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub
from reelmesh.v1.job_service_pb2_grpc import JobServiceStub

from control_plane.store.memory import MemoryStore
from reelkit import rpc
from reelkit.clock import SystemClock
from tests.support.controlplanes import running

DEADLINE_S = 20.0


def job(job_id: str, owner: str = "g0", incarnation: str = "one") -> pb.JobRecord:
    record = pb.JobRecord(tenant="t", owner_gateway=owner, owner_incarnation=incarnation, epoch=1)
    record.video.id = job_id
    return record


@contextlib.asynccontextmanager
async def attached(address: str, gateway: str, incarnation: str = "one"):
    """A gateway's liveness for as long as the block runs; leaving is a crash."""
    async with rpc.internal_channel(address) as channel:
        call = ControlPlaneServiceStub(channel).AttachGateway()
        hello = cp.GatewayHello(
            gateway_id=gateway,
            region="ap",
            grpc_address="127.0.0.1:1",
            http_address="127.0.0.1:2",
            incarnation=incarnation,
        )
        await call.write(cp.AttachGatewayRequest(hello=hello))
        async with asyncio.timeout(DEADLINE_S):
            await call.read()

        async def beat() -> None:
            while True:
                await asyncio.sleep(0.3)
                await call.write(cp.AttachGatewayRequest(beat=cp.GatewayBeat()))

        beating = asyncio.ensure_future(beat())
        try:
            yield
        finally:
            beating.cancel()
            call.cancel()


@pytest.fixture
async def control():
    async with running(store=MemoryStore(clock=SystemClock())) as app:
        yield app


async def until(call, holds):
    async with asyncio.timeout(DEADLINE_S):
        while not holds(response := await call.read()):
            pass
    return response


async def test_a_gateway_that_goes_leaves_orphans_and_an_heir_for_each(control):
    async with rpc.internal_channel(control.address) as channel:
        jobs = JobServiceStub(channel)
        watch = jobs.WatchOrphans(pb.WatchOrphansRequest(gateway_id="g1"))
        async with attached(control.address, "g1"):
            async with attached(control.address, "g0"):
                for number in range(3):
                    await jobs.CreateJob(pb.CreateJobRequest(job=job(f"ap-{number}")))
                await until(watch, lambda response: not response.orphans)
            told = await until(watch, lambda response: len(response.orphans) == 3)
            assert [orphan.job_id for orphan in told.orphans] == ["ap-0", "ap-1", "ap-2"]
            assert {orphan.heir_gateway for orphan in told.orphans} == {"g1"}
            claim = pb.ClaimJobRequest(
                job_id="ap-0", gateway_id="g1", incarnation="one", epoch=told.orphans[0].epoch
            )
            answer = await jobs.ClaimJob(claim)
            assert answer.claimed
            await until(watch, lambda response: len(response.orphans) == 2)
            # Started again under its old name, it owns nothing of its forerunner.
            async with attached(control.address, "g0", incarnation="two"):
                told = await until(
                    watch,
                    lambda response: (
                        any(o.heir_gateway == "g0" for o in response.orphans)
                        or len({o.job_id for o in response.orphans}) == 2
                    ),
                )
                assert len(told.orphans) == 2


async def test_mistakes_have_clear_statuses(control):
    async with rpc.internal_channel(control.address) as channel:
        jobs = JobServiceStub(channel)
        for ask, code, said in (
            (jobs.GetJob(pb.GetJobRequest(tenant="t", job_id="none")), "NOT_FOUND", "none"),
            (jobs.GetJob(pb.GetJobRequest(tenant="t", job_id="")), "INVALID_ARGUMENT", "job_id"),
            (jobs.CreateJob(pb.CreateJobRequest()), "INVALID_ARGUMENT", "job.video.id"),
            (jobs.CreateJob(pb.CreateJobRequest(job=job("a/b"))), "INVALID_ARGUMENT", "'/'"),
            (jobs.ListJobs(pb.ListJobsRequest(page_size=101)), "INVALID_ARGUMENT", "such as 100"),
            (jobs.ListExpiredJobs(pb.ListExpiredJobsRequest()), "INVALID_ARGUMENT", "limit"),
            (jobs.KnownJobs(pb.KnownJobsRequest(job_ids=["x"] * 101)), "INVALID_ARGUMENT", "100"),
        ):
            with pytest.raises(aio.AioRpcError) as caught:
                await ask
            assert caught.value.code() is getattr(grpc.StatusCode, code)
            assert said in caught.value.details()
        await jobs.CreateJob(pb.CreateJobRequest(job=job("ap-1")))
        with pytest.raises(aio.AioRpcError) as caught:
            await jobs.DeleteJob(pb.DeleteJobRequest(tenant="t", job_id="ap-1"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_store_that_is_away_is_a_retryable_error():
    store = MemoryStore(clock=SystemClock())
    async with running(store=store) as control, rpc.internal_channel(control.address) as channel:
        store.set_available(available=False)
        jobs = JobServiceStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await jobs.CreateJob(pb.CreateJobRequest(job=job("ap-1")), timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        store.set_available(available=True)
        assert (await jobs.CreateJob(pb.CreateJobRequest(job=job("ap-1")))).created
