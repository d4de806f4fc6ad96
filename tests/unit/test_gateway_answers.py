"""What becomes of a hit's artifact when its record is not written, or may have been."""

import asyncio
from types import SimpleNamespace

import pytest
from reelmesh.v1 import job_service_pb2

from gateway.core.answers import Answers
from gateway.errors import ResourceExhausted

ENDED = job_service_pb2.JobRecord(artifact_key="videos/a/1")


async def beginning(create):
    """Begins a job whose record is written by ``create``; what was discarded."""
    discarded = []
    answers = Answers.__new__(Answers)
    answers._jobs = SimpleNamespace(create=create)
    answers._committer = SimpleNamespace(discard=discarded.append)

    async def answered(_record):
        return ENDED

    answers._answered = answered
    task = asyncio.ensure_future(answers.begin(ENDED, patience_s=None, over_assignment=False))
    return task, discarded


async def test_what_is_refused_leaves_no_artifact():
    async def refused(_record, *, over_assignment):
        raise ResourceExhausted("full", retry_after_s=1.0)

    task, discarded = await beginning(refused)
    with pytest.raises(ResourceExhausted):
        await task
    assert discarded == [ENDED.artifact_key]


async def test_a_record_that_may_have_been_written_keeps_its_artifact():
    called = asyncio.Event()

    async def hangs(_record, *, over_assignment):
        called.set()
        await asyncio.Event().wait()

    task, discarded = await beginning(hangs)
    await asyncio.wait_for(called.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not discarded
