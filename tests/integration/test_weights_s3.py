"""Weights from a real S3 server: whole, cut, altered, refused, silent."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import obstore
import pytest

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.model_folder import open_model_folder, write_manifest
from node_agent.weights import prepare_weights
from tests.support.agents import agent_process
from tests.support.etcd import free_port
from tests.support.fakeworker import write_fake_model
from tests.support.faultproxy import Direction, FaultProxy
from tests.support.models import DEMO_MODEL
from tests.support.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, s3_environment

DEMO_MANIFEST = open_model_folder(DEMO_MODEL)
DEMO_BYTES = sum(entry.size_bytes for entry in DEMO_MANIFEST.manifest.files)


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in s3_environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def demo_url(s3_server):
    return s3_server.upload(DEMO_MODEL, "models/demo")


@pytest.fixture
def small_url(s3_server, tmp_path):
    """A model of one file under a prefix of its own."""
    write_fake_model(tmp_path / "origin")
    return s3_server.upload(tmp_path / "origin", f"models/{tmp_path.name}")


@pytest.fixture
def wanted(s3_server, tmp_path):
    def settings(source: str, address: str | None = None, **changes: object) -> ModelSettings:
        values = {**s3_server.options(address), "cache_dir": tmp_path / "cache", **changes}
        return ModelSettings(source=source, **values)

    return settings


def served(tmp_path: Path) -> list[str]:
    """Folders of the cache that would be taken for complete."""
    return [p.name for p in (tmp_path / "cache").glob("*") if (p / "manifest.json").exists()]


async def refusal(settings: ModelSettings) -> str:
    """The error's one line, which holds no secret."""
    with pytest.raises(WeightsError) as caught:
        await prepare_weights(settings, on_progress=quiet)
    said = str(caught.value)
    assert "\n" not in said
    assert SECRET_ACCESS_KEY not in said
    assert ACCESS_KEY_ID not in said
    return said


async def test_a_model_is_fetched_whole_and_once(s3_server, demo_url, wanted):
    told: list[tuple[int, int]] = []
    async with FaultProxy(s3_server.address) as proxy:
        settings = wanted(demo_url, proxy.address)
        first = await prepare_weights(settings, on_progress=lambda *line: told.append(line))
        first.verify_files()
        assert first.manifest_sha256 == DEMO_MANIFEST.manifest_sha256
        assert told[-1] == (DEMO_BYTES, DEMO_BYTES)
        before = proxy.bytes_to_client
        second = await prepare_weights(settings, on_progress=quiet)
        assert second.path == first.path
        # Its manifest alone was asked for.
        assert proxy.bytes_to_client - before < 10_000


async def test_a_manifest_at_hand_makes_the_next_start_independent_of_the_store(
    s3_server, small_url, wanted, tmp_path
):
    manifest = tmp_path / "origin" / "manifest.json"
    first = await prepare_weights(wanted(small_url, manifest=manifest), on_progress=quiet)
    nobody = f"127.0.0.1:{free_port()}"
    again = await prepare_weights(wanted(small_url, nobody, manifest=manifest), on_progress=quiet)
    assert again.path == first.path


async def test_a_server_that_dies_leaves_an_error_and_the_next_fetch_goes_on(
    s3_server, demo_url, wanted, tmp_path
):
    async with FaultProxy(s3_server.address) as proxy:
        settings = wanted(demo_url, proxy.address)
        proxy.delay(0.01)

        def die(done: int, _total: int) -> None:
            if done > DEMO_BYTES / 3:
                proxy.cut(refuse=True)

        with pytest.raises(WeightsError, match=rf"{demo_url}/.*: .*error sending request"):
            await prepare_weights(settings, on_progress=die)
        assert served(tmp_path) == []
        proxy.heal()
        before = proxy.bytes_to_client
        (await prepare_weights(settings, on_progress=quiet)).verify_files()
        assert proxy.bytes_to_client - before < DEMO_BYTES * 3 / 4


class EverCuttingProxy(FaultProxy):
    """No connection lives for more than 150 kB."""

    def cut(self, *, refuse: bool = False) -> None:
        super().cut(refuse=refuse)
        self.cut_after(150_000)


async def test_a_file_arrives_though_each_request_is_cut_short(s3_server, wanted, tmp_path):
    """As one of some gigabytes may: no single request lives long enough to bring it whole."""
    origin = tmp_path / "origin"
    fields = write_fake_model(origin).manifest.model_dump(mode="json", exclude={"files"})
    (origin / "weights.safetensors").write_bytes(bytes(2 * 1024 * 1024))
    write_manifest(origin, fields)
    url = s3_server.upload(origin, f"models/{tmp_path.name}")
    async with EverCuttingProxy(s3_server.address) as proxy:
        proxy.cut_after(150_000)
        (await prepare_weights(wanted(url, proxy.address), on_progress=quiet)).verify_files()
        # More often than the client itself would try.
        assert proxy.accepted > 12


def altered(data: bytes) -> bytes:
    return data[:-1] + b"\1"


@pytest.mark.parametrize(
    "change",
    [altered, lambda data: data[:-1], lambda data: data + b"\0"],
    ids=["altered", "truncated", "longer"],
)
async def test_an_object_that_is_not_the_manifests_is_refused(
    s3_server, small_url, wanted, tmp_path, change
):
    store = s3_server.store(f"models/{tmp_path.name}")
    good = bytes(obstore.get(store, "weights.safetensors").bytes())
    obstore.put(store, "weights.safetensors", change(good))
    said = await refusal(wanted(small_url))
    assert said.startswith(f"{small_url}/weights.safetensors: is not what the manifest says")
    assert served(tmp_path) == []
    obstore.put(store, "weights.safetensors", good)
    (await prepare_weights(wanted(small_url), on_progress=quiet)).verify_files()


async def test_a_half_of_an_object_that_was_replaced_since_does_no_harm(
    s3_server, small_url, wanted, tmp_path
):
    model = await prepare_weights(wanted(small_url), on_progress=quiet)
    partial = model.path.with_name(model.path.name + ".partial")
    partial.mkdir()
    shutil.rmtree(model.path)
    (partial / "weights.safetensors.part").write_bytes(b"\7" * 32)
    (await prepare_weights(wanted(small_url), on_progress=quiet)).verify_files()


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("weights.safetensors", "upload it"), ("manifest.json", "name one in model.manifest")],
)
async def test_a_missing_object_is_named(s3_server, small_url, wanted, tmp_path, missing, advice):
    obstore.delete(s3_server.store(f"models/{tmp_path.name}"), missing)
    said = await refusal(wanted(small_url))
    assert said.startswith(f"{small_url}/{missing}: is not there")
    assert advice in said


async def test_refused_credentials_say_which_to_check(small_url, wanted, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + SECRET_ACCESS_KEY)
    said = await refusal(wanted(small_url))
    assert "refuses the credentials (SignatureDoesNotMatch)" in said
    assert "AWS_SECRET_ACCESS_KEY" in said


async def test_missing_credentials_are_called_that(s3_server, small_url, wanted, monkeypatch):
    for name in s3_environment():
        monkeypatch.delenv(name)
    options = s3_server.options()["store_options"]
    # Whom the client asks then, on a cloud's machine; here nobody listens.
    nobody = {**options, "metadata_endpoint": f"http://127.0.0.1:{free_port()}"}
    said = await refusal(wanted(small_url, store_options=nobody))
    assert "there are no credentials: set AWS_ACCESS_KEY_ID" in said


async def test_a_missing_bucket_is_called_that(wanted):
    said = await refusal(wanted("s3://no-such-bucket/models/demo"))
    assert said.endswith("there is no such bucket; mend model.source")


async def test_a_server_that_is_down_is_an_error_within_seconds(wanted):
    began_s = time.monotonic()
    said = await refusal(wanted(f"s3://{BUCKET}/models/demo", f"127.0.0.1:{free_port()}"))
    assert "error sending request" in said
    assert time.monotonic() - began_s < 15


async def test_a_server_that_falls_silent_is_given_up_and_gone_on_with(
    s3_server, demo_url, wanted, tmp_path
):
    async with FaultProxy(s3_server.address) as proxy:
        proxy.delay(0.01)

        def hold(done: int, _total: int) -> None:
            if done > DEMO_BYTES / 3:
                proxy.hold(Direction.TO_CLIENT)

        with pytest.raises(
            WeightsError, match=r"(?s)sent nothing for 1 s \(model\.fetch_stall_s\)"
        ):
            await prepare_weights(
                wanted(demo_url, proxy.address, fetch_stall_s=1.0), on_progress=hold
            )
        assert served(tmp_path) == []
        proxy.cut()
        proxy.heal()
        before = proxy.bytes_to_client
        (await prepare_weights(wanted(demo_url, proxy.address), on_progress=quiet)).verify_files()
        assert proxy.bytes_to_client - before < DEMO_BYTES * 3 / 4


async def test_an_agent_whose_model_is_in_s3_becomes_ready(s3_server, demo_url, tmp_path):
    model = {"source": demo_url, "cache_dir": str(tmp_path / "cache"), **s3_server.options()}
    async with agent_process(tmp_path, DEMO_MODEL, model=model) as agent:
        await agent.until_ready()
