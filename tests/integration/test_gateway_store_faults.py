"""A store that hangs, fails late or is left alone: no job, tenant or shutdown suffers."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import obstore
import pytest
from reelmesh.v1 import video_pb2

from gateway.output.artifacts import ArtifactError, StoreLimits, artifact_key, open_store
from gateway.output.spool_file import SpoolFile
from tests.support import fakenode
from tests.support.artifacts import Slow, listed
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, data_of, kinds, open_gateway

DEADLINE_S = 20
MIB = 1024 * 1024
BIG = b"mine" * (MIB // 2)
OTHER = b"else" * (MIB // 2)
ON_DISK = {"memory_bytes_per_video": 0}


class Naming:
    """Holds the thread that gives a spool file its name, the first time."""

    def __init__(self, monkeypatch):
        self.began = threading.Event()
        self.go = threading.Event()
        self.named = []
        """What each file held when it got its name."""
        keep_as = SpoolFile.keep_as

        def held(file, path):
            if "videos" not in path.parts:
                return keep_as(file, path)
            if not self.began.is_set():
                self.began.set()
                assert self.go.wait(DEADLINE_S)
            kept = keep_as(file, path)
            self.named.append(path.read_bytes())
            return kept

        monkeypatch.setattr(SpoolFile, "keep_as", held)


@pytest.fixture
def naming(monkeypatch):
    held = Naming(monkeypatch)
    yield held
    held.go.set()


async def until(condition):
    """Waits for what threads tell nobody."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.005)


async def until_empty(store):
    async with asyncio.timeout(DEADLINE_S):
        while await listed(store):  # noqa: ASYNC110 - told to nobody
            await asyncio.sleep(0.005)


# --- a write that is given up ---


async def test_a_write_that_is_given_up_never_names_anothers_file(tmp_path, naming):
    store = open_store(str(tmp_path / "a"))
    file = SpoolFile(tmp_path)
    file.write(b"mine")
    putting = asyncio.ensure_future(store.put(artifact_key("ap-x", 1), file))
    await until(naming.began.is_set)
    putting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await putting
    file.close()
    # The next file gets the number of the closed one.
    other = SpoolFile(tmp_path)
    other.write(b"else")
    naming.go.set()
    await until(lambda: naming.named)
    assert naming.named == [b"mine"]
    await until_empty(store)
    other.close()


async def test_a_cancel_while_it_is_written_frees_job_and_bytes_at_once(tmp_path, naming):
    node, artifacts = FakeNode("n0"), open_store(str(tmp_path / "a"))
    node.script.append(fakenode.finish(BIG, piece=MIB))
    node.default = fakenode.finish(OTHER, piece=MIB)
    opened = open_gateway(tmp_path, artifacts=artifacts, spool=ON_DISK)
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await until(naming.began.is_set)
        answered = await gateway.videos.cancel(ME, video.id)
        assert answered.status == video_pb2.VIDEO_STATUS_CANCELLED
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        assert gateway.metric("spool_bytes") == 0
        await node.until(lambda: node.releases)
        assert not node.cancels
        # It is written by another thread, while the first one still holds its own file.
        again = await gateway.create()
        assert data_of(await gateway.watched(again.id)) == OTHER
        naming.go.set()
        await until(lambda: len(naming.named) == 2)
        assert sorted(naming.named) == sorted([BIG, OTHER])
        async with asyncio.timeout(DEADLINE_S):
            while len(await listed(artifacts)) > 1:  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.005)
        assert [a.video_id for a in await listed(artifacts)] == [again.id]
        assert len(node.runs) == 2


# --- a store that hangs ---


async def test_a_job_that_is_being_written_keeps_to_its_deadline(tmp_path):
    node, hangs = FakeNode("n0"), Slow(open_store("memory:///"))
    async with serve_node(node), open_gateway(tmp_path, artifacts=hangs) as gateway:
        await gateway.know(node)
        video = await gateway.create(deadline_s=0.3)
        await hangs.writing.wait()
        events = await gateway.watched(video.id)
        assert events[-1].failed.code == "deadline_exceeded"
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        await node.until(lambda: node.releases)


async def test_a_drain_gives_up_what_is_being_written(tmp_path):
    node, hangs = FakeNode("n0"), Slow(open_store("memory:///"))
    async with serve_node(node), open_gateway(tmp_path, artifacts=hangs) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await hangs.writing.wait()
        async with asyncio.timeout(DEADLINE_S):
            await gateway.core.lifetimes.drain(0.05)
        assert (await gateway.watched(video.id))[-1].failed.code == "gateway_stopped"
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)


async def test_a_write_that_hangs_is_tried_anew_and_leaves_one_artifact(tmp_path, naming):
    node = FakeNode("n0")
    node.default = fakenode.finish(BIG, piece=MIB)
    artifacts = open_store(str(tmp_path / "a"), StoreLimits(write_timeout_s=0.2))
    opened = open_gateway(tmp_path, artifacts=artifacts, spool=ON_DISK)
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        naming.go.set()
        await until(lambda: len(naming.named) == 2)
        async with asyncio.timeout(DEADLINE_S):
            while len(await listed(artifacts)) > 1:  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.005)
        download = await gateway.videos.download(ME, video.id, offset=0)
        assert b"".join([piece async for piece in download.chunks]) == BIG


@pytest.fixture
def hung_reads(monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(obstore, "get_range", lambda *_args, **_kwargs: go.wait(DEADLINE_S))
    yield
    go.set()


@pytest.mark.usefixtures("hung_reads")
async def test_a_read_that_hangs_is_an_error_in_time_and_holds_up_no_other_call():
    limits = StoreLimits(timeout_s=0.1, max_parallel=2)
    store = open_store("memory:///", limits)
    key = artifact_key("ap-x", 1)
    await store.put(key, b"abc")
    with pytest.raises(ArtifactError, match="no answer within"):
        await store.read(key, 0, 3)
    # With every thread in a hung call the others fail in time too, and wait for none.
    found = await asyncio.gather(
        *(store.read(key, 0, 3) for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(error, ArtifactError) for error in found)
    # And the loop's own threads are free.
    assert await asyncio.to_thread(lambda: 7) == 7


def test_a_process_ends_though_its_store_hangs():
    script = """
import asyncio, threading
import obstore
from gateway.output.artifacts import ArtifactError, StoreLimits, open_store

obstore.put = lambda *_args, **_kwargs: threading.Event().wait()

async def main():
    store = open_store("memory:///", StoreLimits(write_timeout_s=0.05))
    try:
        await store.put("videos/ap-x/1.mp4", b"x")
    except ArtifactError as error:
        print(error)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=DEADLINE_S,
        capture_output=True,
        text=True,
    )
    assert "no answer within 0.05 s" in done.stdout
    assert not done.stderr
