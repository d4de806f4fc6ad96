"""Registered versions from other nodes: taken by their digests, whoever sends them."""

from __future__ import annotations

import asyncio
import hashlib
import shutil

import grpc
import pytest
from reelmesh.v1 import registry_pb2 as reg
from reelmesh.v1.weights_service_pb2 import ReadFileRequest
from reelmesh.v1.weights_service_pb2_grpc import WeightsServiceStub

from tests.support.prefetchers import BadPeer, peer_of, running, serving
from tests.support.registries import registration
from tests.support.weights import safetensors, signing_key, write_weights

VERIFIED, FAILED = reg.WEIGHTS_STATE_VERIFIED, reg.WEIGHTS_STATE_FAILED
WAITING, FETCHING = reg.WEIGHTS_STATE_WAITING, reg.WEIGHTS_STATE_FETCHING
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def key(tmp_path):
    return signing_key(tmp_path)


@pytest.fixture
def trusting(key):
    """Settings of a node that takes what the key signed."""
    return {"trusted_keys": [key[2]]}


@pytest.fixture
def small(tmp_path, key):
    """A version in a folder."""
    return registration(write_weights(tmp_path / "w"), key=key[1])


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture
async def holder(tmp_path, small, trusting):
    """A node that has the version; the source is gone."""
    async with running(tmp_path / "holder", **trusting) as node:
        node.want(small)
        await node.until(VERIFIED)
        shutil.move(tmp_path / "w", tmp_path / "moved")
        yield node


async def test_a_version_comes_from_a_peer_alone(tmp_path, small, trusting, holder):
    async with serving(peer_of(holder)) as address, running(tmp_path / "b", **trusting) as node:
        node.want(small, peers=[address], origin=False)
        status = await node.until(VERIFIED)
        assert (status.origin_bytes, status.peer_bytes) == (0, small.size_bytes)


async def test_peers_come_before_the_source_and_the_source_before_nobody(
    tmp_path, small, trusting, holder
):
    shutil.move(tmp_path / "moved", tmp_path / "w")
    async with serving(peer_of(holder)) as address, running(tmp_path / "b", **trusting) as node:
        node.want(small, peers=["127.0.0.1:1", address])
        status = await node.until(VERIFIED)
        assert (status.origin_bytes, status.peer_bytes) == (0, small.size_bytes)
    async with running(tmp_path / "c", **trusting) as node:
        node.want(small, peers=["127.0.0.1:1"])
        assert (await node.until(VERIFIED)).origin_bytes == small.size_bytes


async def test_who_may_not_go_to_the_source_waits_for_a_peer_or_its_turn(tmp_path, small, trusting):
    async with running(tmp_path / "b", **trusting) as node:
        node.want(small, origin=False)
        await node.until(FETCHING)
        await node.until(WAITING)
        assert node.store.kept_bytes() == 0
        node.want(small, origin=True)
        assert (await node.until(VERIFIED)).origin_bytes == small.size_bytes


GARBAGE = [
    (BadPeer(b"\1" * 300_080), "garbage"),
    (BadPeer(b"\1" * 400_000), "too-long"),
    (BadPeer(*[b"\1" * 1000] * 1000), "too-long-in-pieces"),
    (BadPeer(safetensors(300_000, 2)[:-4] + b"evil"), "nearly-right"),
]


@pytest.mark.parametrize("bad", [each for each, _ in GARBAGE], ids=[name for _, name in GARBAGE])
async def test_a_peer_that_sends_garbage_is_avoided_and_poisons_nothing(
    tmp_path, small, trusting, holder, bad
):
    bad.asked = 0
    async with (
        serving(bad) as liar,
        serving(peer_of(holder)) as honest,
        running(tmp_path / "b", parallel_files=1, **trusting) as node,
    ):
        node.want(small, peers=[liar, honest], origin=False)
        status = await node.until(VERIFIED)
        assert status.origin_bytes == 0
        folder = node.prefetcher.folder_of(small.manifest_sha256)
        assert files_of(folder) == files_of(tmp_path / "moved")
        # Once for the file that gave it away; the next ones are not asked of it.
        assert bad.asked == 1
        assert node.prefetcher._avoided_now() == [liar]


@pytest.mark.parametrize("bad", [BadPeer(b"\1" * 1000), BadPeer(b"x", then_hang=True), BadPeer()])
async def test_bytes_of_a_liar_among_honest_ones_do_not_keep_a_file_from_coming(
    tmp_path, small, trusting, holder, bad, monkeypatch
):
    async with (
        serving(bad) as liar,
        serving(peer_of(holder)) as honest,
        running(tmp_path / "b", **trusting) as node,
    ):
        node.want(small, peers=[liar, honest], origin=False)
        await node.until(VERIFIED)
        folder = node.prefetcher.folder_of(small.manifest_sha256)
        assert files_of(folder) == files_of(tmp_path / "moved")


async def test_with_bad_peers_alone_the_source_serves(tmp_path, small, trusting):
    async with (
        serving(BadPeer(b"\1" * 300_080)) as liar,
        running(tmp_path / "b", **trusting) as node,
    ):
        node.want(small, peers=[liar])
        assert (await node.until(VERIFIED)).origin_bytes == small.size_bytes


async def test_a_busy_peer_is_waited_for(tmp_path, small, trusting, holder):
    service = peer_of(holder, max_streams=1, bytes_per_s=400_000)
    async with serving(service) as address, running(tmp_path / "b", **trusting) as node:
        node.want(small, peers=[address], origin=False)
        await node.until(VERIFIED)
        assert service.sent_bytes == small.size_bytes


async def test_peers_read_from_one_that_is_still_getting_it(tmp_path, key, trusting):
    """File by file: a region's nodes are done soon after the one that goes to the source."""
    files = {f"{letter}.safetensors": number for number, letter in enumerate("abcdef")}
    model = registration(write_weights(tmp_path / "w", files=files), key=key[1])
    slow = {**trusting, "max_bytes_per_s": 600_000, "parallel_files": 1}
    async with (
        running(tmp_path / "a", **slow) as first,
        serving(peer_of(first)) as address,
        running(tmp_path / "b", **trusting) as second,
    ):
        first.want(model)
        second.want(model, peers=[address], origin=False)
        seen = asyncio.Event()
        second.on_status = lambda status: status.peer_bytes > 300_000 and seen.set()
        await asyncio.wait_for(seen.wait(), 60)
        assert first.prefetcher.statuses()[0].state == FETCHING
        await first.until(VERIFIED)
        assert (await second.until(VERIFIED)).origin_bytes == 0


async def test_readers_learn_nothing_but_files_by_their_digests(tmp_path, small, holder):
    config = hashlib.sha256((tmp_path / "moved/config.json").read_bytes()).hexdigest()
    async with serving(peer_of(holder)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = WeightsServiceStub(channel)

        async def answer(sha256, offset=0):
            try:
                data = b"".join(
                    [
                        response.data
                        async for response in stub.ReadFile(
                            ReadFileRequest(sha256=sha256, offset=offset), timeout=20
                        )
                    ]
                )
            except grpc.aio.AioRpcError as error:
                return error.code()
            return data

        assert await answer(config) == (tmp_path / "moved/config.json").read_bytes()
        assert await answer(config, 4) == (tmp_path / "moved/config.json").read_bytes()[4:]
        assert await answer(config, 10_000) is grpc.StatusCode.OUT_OF_RANGE
        assert await answer("0" * 64) is grpc.StatusCode.NOT_FOUND
        for bad in ("", "../../pins/n0", config.upper(), config + "/..", "a" * 63):
            assert await answer(bad) is grpc.StatusCode.INVALID_ARGUMENT
        # A part is not handed out.
        part = holder.store.part("1" * 64)
        with part.held():
            part.file.write(b"half")
            part.file.flush()
            assert await answer("1" * 64) is grpc.StatusCode.NOT_FOUND
        part.close()


async def test_agents_that_share_a_disk_do_not_wait_for_one_another_for_ever(
    tmp_path, small, trusting
):
    """The one that may not go to the source began first, and must let the other write."""
    async with (
        running(tmp_path / "cache", node_id="n1", **trusting) as waiting,
        running(tmp_path / "cache", node_id="n2", **trusting) as going,
    ):
        waiting.want(small, origin=False)
        await waiting.until(FETCHING)
        await waiting.until(WAITING)
        going.want(small)
        await going.until(VERIFIED)
        status = await waiting.until(VERIFIED)
        assert (status.origin_bytes, status.done_bytes) == (0, small.size_bytes)
