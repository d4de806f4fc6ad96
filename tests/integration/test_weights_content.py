"""Registered versions onto a node's disk: signed, whole, resumed, shared, bounded, from peers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

import obstore
import pytest
from reelmesh.v1 import registry_pb2 as reg

from node_agent.model_folder import open_model_folder
from tests.support.fakehub import FakeHub
from tests.support.faultproxy import Direction, FaultProxy
from tests.support.prefetchers import peer_of, running, serving
from tests.support.registries import registration
from tests.support.s3 import s3_environment
from tests.support.weights import signing_key, write_weights

VERIFIED, FAILED = reg.WEIGHTS_STATE_VERIFIED, reg.WEIGHTS_STATE_FAILED
WAITING, FETCHING = reg.WEIGHTS_STATE_WAITING, reg.WEIGHTS_STATE_FETCHING
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in s3_environment().items():
        monkeypatch.setenv(name, value)


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


@pytest.fixture
def in_s3(s3_server, tmp_path, key):
    """Makes a version in a bucket, and the settings that reach it, through a proxy or not."""

    def made(address=None, **changes):
        folder = write_weights(tmp_path / "w", **changes)
        url = s3_server.upload(folder, f"content/{tmp_path.name}")
        return registration(folder, key=key[1], sources=[url]), s3_server.options(address)

    return made


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


async def test_a_version_comes_whole_signed_and_as_a_model_folder(tmp_path, small, trusting):
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        status = await node.until(VERIFIED)
        assert status.done_bytes == status.total_bytes == small.size_bytes == status.origin_bytes
        folder = node.prefetcher.folder_of(small.manifest_sha256)
        assert files_of(folder) == files_of(tmp_path / "w")
        opened = open_model_folder(folder)
        opened.verify_files()
        assert opened.manifest_sha256 == small.manifest_sha256
        assert [each.state for each in node.history[:2]] == [WAITING, FETCHING]
    # After a restart it is there without any source.
    shutil.rmtree(tmp_path / "w")
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        assert (await node.until(VERIFIED)).origin_bytes == 0


async def test_from_a_real_bucket_and_from_the_hubs_commit(
    tmp_path, key, trusting, in_s3, monkeypatch
):
    model, options = in_s3()
    async with running(tmp_path / "cache", **trusting, **options) as node:
        node.want(model)
        await node.until(VERIFIED)
    async with FakeHub(token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{hub.address}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{hub.address}")
        commit = hub.add("org/small", tmp_path / "w")
        model = registration(tmp_path / "w", key=key[1], sources=[f"hf://org/small@{commit}"])
        async with running(tmp_path / "other", **trusting) as node:
            node.want(model)
            assert (await node.until(VERIFIED)).origin_bytes == model.size_bytes
        assert hub.tokens == {"hf_secret"}


async def test_versions_that_share_files_fetch_and_keep_them_once(tmp_path, key, trusting):
    old, new = ({"text/m.safetensors": 1, "vae/m.safetensors": n} for n in (2, 3))
    first = registration(write_weights(tmp_path / "a", files=old), key=key[1])
    second = registration(write_weights(tmp_path / "b", files=new), key=key[1], version="v2")
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(first, second)
        await node.until(VERIFIED, first)
        status = await node.until(VERIFIED, second)
        # Its own vae alone came.
        assert 300_000 < status.origin_bytes < 310_000
        assert 900_000 < node.store.kept_bytes() < 910_000
        one, two = (node.prefetcher.folder_of(m.manifest_sha256) for m in (first, second))
        assert (one / "text/m.safetensors").samefile(two / "text/m.safetensors")


# --- what is refused, before a byte is served ---


async def test_an_untrusted_signature_is_refused_before_anything_is_fetched(
    tmp_path, small, trusting
):
    _, _, other = signing_key(tmp_path, "other")
    async with running(tmp_path / "cache", trusted_keys=[other]) as node:
        node.want(small)
        assert "which is not in registry.trusted_keys" in await node.refusal()
        assert node.store.kept_bytes() == 0
    async with running(tmp_path / "cache") as node:
        node.want(small)
        assert "trusts nobody's signature" in await node.refusal()
    # What was taken is refused too where its key is trusted no more.
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        await node.until(VERIFIED)
    async with running(tmp_path / "cache", trusted_keys=[other]) as node:
        node.want(small)
        assert "which is not in registry.trusted_keys" in await node.refusal()
        assert node.prefetcher.folder_of(small.manifest_sha256) is None


async def test_a_wrong_signature_is_refused_though_none_is_required(tmp_path, small, trusting):
    small.signatures[0].signature = bytes(64)
    async with running(tmp_path / "cache", require_signature=False, **trusting) as node:
        node.want(small)
        assert "does not hold" in await node.refusal()


async def test_an_unsigned_version_is_taken_where_the_operator_allows_it(tmp_path, key, trusting):
    model = registration(write_weights(tmp_path / "w"), key=None)
    async with running(tmp_path / "a", **trusting) as node:
        node.want(model)
        assert "is not signed" in await node.refusal()
    async with running(tmp_path / "b", require_signature=False) as node:
        node.want(model)
        await node.until(VERIFIED)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1] + b"\1", "is not what was registered (its sha256 differs)"),
        (lambda data: data[:-1], "has 300079 bytes, and the manifest says 300080"),
        (lambda data: data + b"\0", "has 300081 bytes"),
    ],
    ids=["altered", "truncated", "longer"],
)
@pytest.mark.parametrize("where", ["folder", "s3"])
async def test_a_file_that_was_tampered_with_at_its_source_is_refused(
    tmp_path, small, trusting, in_s3, s3_server, change, said, where
):
    path, options = "vae/model.safetensors", {}
    good = (tmp_path / "w" / path).read_bytes()
    if where == "s3":
        small, options = in_s3()
        obstore.put(s3_server.store(f"content/{tmp_path.name}"), path, change(good))
    else:
        (tmp_path / "w" / path).write_bytes(change(good))
    async with running(tmp_path / "cache", **trusting, **options) as node:
        node.want(small)
        refused = await node.refusal()
        assert path in refused
        assert said in refused
        assert node.store.find(small.manifest_sha256) is None
        # Mended, it is tried again by itself, and what was good is not fetched again.
        if where == "s3":
            obstore.put(s3_server.store(f"content/{tmp_path.name}"), path, good)
        else:
            (tmp_path / "w" / path).write_bytes(good)
        assert (await node.until(VERIFIED)).origin_bytes <= small.size_bytes


async def test_the_second_source_serves_where_the_first_was_tampered_with(tmp_path, key, trusting):
    folder = write_weights(tmp_path / "w")
    shutil.copytree(folder, tmp_path / "spoilt")
    with (tmp_path / "spoilt/vae/model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"evil")
    sources = [(tmp_path / name).as_uri() for name in ("spoilt", "absent", "w")]
    model = registration(folder, key=key[1], sources=sources)
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(model)
        await node.until(VERIFIED)
        folder_of = node.prefetcher.folder_of(model.manifest_sha256)
        assert files_of(folder_of) == files_of(folder)


async def test_a_huge_manifest_is_not_read(tmp_path, small, trusting):
    small.manifest, small.manifest_size_bytes = b"", 1_000
    (tmp_path / "w" / "manifest.json").write_bytes(b" " * 10_000_000)
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        assert "has 10000000 bytes" in await node.refusal()


async def test_a_long_manifest_lies_beside_the_weights_and_at_peers(tmp_path, key, trusting):
    files = {f"part-{number:03}/model.safetensors": number for number in range(120)}
    apart = write_weights(tmp_path / "apart") / "manifest.json"
    folder = write_weights(tmp_path / "w", files=files, size_bytes=100, described=False)
    shutil.copy(apart, folder)
    (folder / "manifest.json").rename(tmp_path / "described.json")
    from control_plane.reelctl.registering import Wish, make_registration

    model, _ = make_registration(
        Wish(
            name="small",
            version="v1",
            source=str(folder),
            base="",
            manifest=tmp_path / "described.json",
            serve_from=(),
            exclude=(),
            key=key[1],
            store_options={},
            client_options={},
        )
    )
    assert not model.manifest
    async with running(tmp_path / "a", **trusting) as first:
        first.want(model)
        await first.until(VERIFIED)
        shutil.rmtree(folder)
        async with serving(peer_of(first)) as address, running(tmp_path / "b", **trusting) as node:
            node.want(model, peers=[address], origin=False)
            assert (await node.until(VERIFIED)).origin_bytes == 0
    # An altered one is not believed.
    (tmp_path / "w").mkdir()
    (tmp_path / "w/manifest.json").write_bytes(b" " * model.manifest_size_bytes)
    async with running(tmp_path / "c", **trusting) as node:
        node.want(model)
        assert "manifest.json: is not what was registered" in await node.refusal()


async def test_symbolic_links_at_a_source_bring_nothing_but_the_listed_bytes(
    tmp_path, small, trusting
):
    path = tmp_path / "w" / "config.json"
    path.unlink()
    path.symlink_to("/etc/passwd")
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        assert "config.json" in await node.refusal()
        assert node.store.find(small.manifest_sha256) is None


# --- what breaks on the way ---


async def test_a_connection_that_is_cut_is_gone_on_with(tmp_path, trusting, in_s3, s3_server):
    async with FaultProxy(s3_server.address) as proxy:
        model, options = in_s3(proxy.address, size_bytes=3_000_000)
        async with running(tmp_path / "cache", **trusting, **options) as node:
            proxy.delay(0.01)

            def cut(status):
                if status.done_bytes > model.size_bytes / 3 and not cut.done:
                    cut.done = True
                    proxy.cut(refuse=True)

            cut.done = False
            node.on_status = cut
            node.want(model)
            await node.until(FAILED)
            came = proxy.bytes_to_client
            assert came < model.size_bytes
            proxy.heal()
            await node.until(VERIFIED)
            # Not a tenth was fetched twice.
            assert proxy.bytes_to_client < model.size_bytes * 1.1


async def test_a_killed_agent_leaves_what_the_next_one_goes_on_with(
    tmp_path, trusting, in_s3, s3_server
):
    async with FaultProxy(s3_server.address) as proxy:
        model, options = in_s3(proxy.address, size_bytes=3_000_000)
        proxy.delay(0.01)
        third = asyncio.Event()
        async with running(tmp_path / "cache", **trusting, **options) as node:
            node.on_status = lambda s: s.done_bytes > model.size_bytes / 3 and third.set()
            node.want(model)
            await asyncio.wait_for(third.wait(), 60)
            await node.stop()
        async with running(tmp_path / "cache", **trusting, **options) as node:
            node.want(model)
            status = await node.until(VERIFIED)
            assert status.origin_bytes < model.size_bytes * 3 / 4
        assert proxy.bytes_to_client < model.size_bytes * 1.2
        assert not list((tmp_path / "cache/content/parts").iterdir())


async def test_a_source_that_falls_silent_is_given_up_and_gone_on_with(
    tmp_path, trusting, in_s3, s3_server
):
    async with FaultProxy(s3_server.address) as proxy:
        model, options = in_s3(proxy.address, size_bytes=3_000_000)
        settings = {**trusting, **options, "fetch_stall_s": 1.0}
        async with running(tmp_path / "cache", **settings) as node:
            proxy.delay(0.01)

            def hold(status):
                if status.done_bytes > model.size_bytes / 3 and not hold.done:
                    hold.done = True
                    proxy.hold(Direction.TO_CLIENT)

            hold.done = False
            node.on_status = hold
            node.want(model)
            assert "sent nothing for 1 s" in await node.refusal()
            proxy.cut()
            proxy.heal()
            status = await node.until(VERIFIED)
            assert status.origin_bytes < model.size_bytes * 3 / 4


async def test_the_bandwidth_is_bounded(tmp_path, key, trusting):
    model = registration(write_weights(tmp_path / "w", size_bytes=1_000_000), key=key[1])
    loop = asyncio.get_running_loop()
    # Never stalled, though each block waits for its turn longer than a stall lasts.
    settings = {**trusting, "max_bytes_per_s": 500_000, "fetch_stall_s": 0.3}
    async with running(tmp_path / "cache", **settings) as node:
        began_s = loop.time()
        node.want(model)
        await node.until(VERIFIED)
        # Two megabytes, of which a second's worth and a block for each file are free.
        assert loop.time() - began_s > 1.5
        assert not [each for each in node.history if each.state == FAILED]


async def test_a_full_cache_evicts_what_is_not_wanted_and_else_says_so(tmp_path, key, trusting):
    models = [
        registration(
            write_weights(tmp_path / name, files={"m.safetensors": number}),
            key=key[1],
            version=name,
        )
        for number, name in enumerate(("v1", "v2", "v3"))
    ]
    async with running(tmp_path / "cache", max_bytes=700_000, **trusting) as node:
        node.want(*models[:2])
        await node.until(VERIFIED, models[1])
        # Three are wanted and two fit: those that are here stay.
        node.want(*models)
        status = await node.until(FAILED, models[2])
        assert "raise registry.max_bytes" in status.reason
        assert all(node.prefetcher.folder_of(m.manifest_sha256) for m in models[:2])
        # The first is wanted no more, but served.
        node.prefetcher.keep([models[0].manifest_sha256])
        node.want(*models[1:])
        await asyncio.sleep(0.5)
        await node.until(FAILED, models[2])
        assert node.store.find(models[0].manifest_sha256)
        node.prefetcher.keep([])
        node.want(*models[1:])
        await node.until(VERIFIED, models[2])
        assert node.store.find(models[0].manifest_sha256) is None
        assert node.store.find(models[1].manifest_sha256)


async def test_what_is_wanted_no_more_is_not_fetched_to_its_end(
    tmp_path, trusting, in_s3, s3_server
):
    async with FaultProxy(s3_server.address) as proxy:
        model, options = in_s3(proxy.address, size_bytes=3_000_000)
        proxy.delay(0.01)
        begun = asyncio.Event()
        async with running(tmp_path / "cache", **trusting, **options) as node:
            node.on_status = lambda status: status.done_bytes and begun.set()
            node.want(model)
            await asyncio.wait_for(begun.wait(), 60)
            node.want()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while proxy.bytes_to_client < model.size_bytes:  # noqa: ASYNC110 - it tells nobody
                        await asyncio.sleep(0.05)
            assert proxy.bytes_to_client < model.size_bytes
            assert node.prefetcher.statuses() == []


async def test_a_cache_that_cannot_be_written_fails_the_version_and_not_the_agent(
    tmp_path, small, trusting
):
    (tmp_path / "cache").write_text("a file, and no folder")
    async with running(tmp_path / "cache", **trusting) as node:
        node.want(small)
        assert str(tmp_path / "cache") in await node.refusal()
        (tmp_path / "cache").unlink()
        await node.until(VERIFIED)


async def test_a_full_disk_fails_and_is_tried_again(tmp_path, small, trusting, monkeypatch):
    """A disk that fills on the way, by a limit on the size of files of the child's."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with running(tmp_path / "cache", **trusting) as node:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            node.want(small)
            refused = await node.refusal()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert f"cannot be written to {tmp_path}" in refused
        status = await node.until(VERIFIED)
        assert status.done_bytes == small.size_bytes
        assert os.listdir(tmp_path / "cache/content/parts") == []  # noqa: PTH208 - names alone
