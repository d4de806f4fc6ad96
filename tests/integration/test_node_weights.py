"""Weights from folders, object stores and the Hub, as the agent's child process gets them."""

from __future__ import annotations

import json
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.fetch_store import fetch_from_store
from node_agent.fetch_watch import StallWatch
from node_agent.model_folder import open_model_folder
from node_agent.weights import prepare_weights
from node_agent.weights_cache import WeightsCache, read_manifest_file
from tests.support.fakeworker import write_fake_model

SHIPPED = Path(__file__).parents[2] / "node_agent" / "models" / "wan2.2-ti2v-5b.manifest.json"


WATCH = StallWatch(60.0, pytest.fail)


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def settings(source: str, tmp_path: Path, **changes: object) -> ModelSettings:
    return ModelSettings(source=source, cache_dir=tmp_path / "cache", **changes)


@pytest.fixture
def model(tmp_path):
    return write_fake_model(tmp_path / "origin")


def put_all(store: object, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            obstore.put(store, path.relative_to(folder).as_posix(), path.read_bytes())


async def test_a_folder_with_its_manifest_is_used_where_it_lies(model, tmp_path):
    folder = await prepare_weights(settings(str(model.path), tmp_path), on_progress=quiet)
    assert folder.path == model.path
    assert not (tmp_path / "cache").exists()


async def test_a_missing_folder_says_which(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        await prepare_weights(settings(str(tmp_path / "nowhere"), tmp_path), on_progress=quiet)


async def test_a_file_url_is_fetched_once_and_verified(model, tmp_path):
    told: list[tuple[int, int]] = []
    wanted = settings(model.path.as_uri(), tmp_path)
    first = await prepare_weights(wanted, on_progress=lambda *line: told.append(line))
    assert first.manifest_sha256 == model.manifest_sha256
    first.verify_files()
    assert told[-1] == (64, 64)
    # The origin is gone, the cache serves: only the manifest is asked for.
    (model.path / "weights.safetensors").unlink()
    second = await prepare_weights(wanted, on_progress=quiet)
    assert second.path == first.path


async def test_an_unreachable_url_is_a_plain_error(tmp_path):
    wanted = settings((tmp_path / "nowhere").as_uri(), tmp_path)
    with pytest.raises(WeightsError, match="nowhere") as caught:
        await prepare_weights(wanted, on_progress=quiet)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_an_altered_file_is_refused_and_what_was_good_is_kept(model, tmp_path, kind):
    (tmp_path / "store").mkdir()
    store = MemoryStore() if kind == "memory" else LocalStore(tmp_path / "store")
    put_all(store, model.path)
    obstore.put(store, "weights.safetensors", b"\1" * 64)
    cache = WeightsCache(tmp_path / "cache")
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        fetch_from_store(store, None, cache, where="store", watch=WATCH, on_progress=quiet)
    assert not list(cache.root.glob("fake-v1-*[!l]/manifest.json"))
    put_all(store, model.path)
    folder = fetch_from_store(store, None, cache, where="store", watch=WATCH, on_progress=quiet)
    folder.verify_files()


def test_a_fetch_that_was_cut_short_goes_on_where_it_stopped(model, tmp_path):
    store = MemoryStore()
    put_all(store, model.path)
    cache = WeightsCache(tmp_path / "cache")
    partial = cache.partial("fake-v1", model.manifest_sha256)
    (partial / "weights.safetensors").write_bytes(b"\0" * 64)
    obstore.delete(store, "weights.safetensors")
    folder = fetch_from_store(store, None, cache, where="store", watch=WATCH, on_progress=quiet)
    folder.verify_files()


def test_a_file_larger_than_stated_is_not_read_to_its_end(model, tmp_path):
    store = MemoryStore()
    put_all(store, model.path)
    obstore.put(store, "weights.safetensors", b"\0" * 65)
    cache = WeightsCache(tmp_path / "cache")
    with pytest.raises(WeightsError, match="sha256 or size"):
        fetch_from_store(store, None, cache, where="store", watch=WATCH, on_progress=quiet)


async def test_a_manifest_kept_apart_is_put_beside_the_files(model, tmp_path):
    manifest = tmp_path / "apart.json"
    (model.path / "manifest.json").rename(manifest)
    wanted = settings(str(model.path), tmp_path, manifest=manifest)
    folder = await prepare_weights(wanted, on_progress=quiet)
    assert folder.manifest_sha256 == model.manifest_sha256
    assert (folder.path / "weights.safetensors").stat().st_nlink == 2
    assert not (model.path / "manifest.json").exists()


def unverified_manifest(model_path: Path, tmp_path: Path) -> Path:
    fields = json.loads((model_path / "manifest.json").read_text())
    fields["files"] = None
    (model_path / "manifest.json").unlink()
    manifest = tmp_path / "unverified.json"
    manifest.write_text(json.dumps(fields))
    return manifest


async def test_without_listed_files_the_digests_are_taken_from_what_is_there(model, tmp_path):
    manifest = unverified_manifest(model.path, tmp_path)
    (model.path / "README.md").write_text("ignored")
    (model.path / ".cache").mkdir()
    (model.path / ".cache" / "x.json").write_text("{}")
    wanted = settings(str(model.path), tmp_path, manifest=manifest)
    folder = await prepare_weights(wanted, on_progress=quiet)
    assert [entry.path for entry in folder.manifest.files] == ["weights.safetensors"]
    # Unchanged files are not hashed and linked again.
    again = await prepare_weights(wanted, on_progress=quiet)
    assert again.path == folder.path
    (model.path / "weights.safetensors").unlink()
    (model.path / "weights.safetensors").write_bytes(b"\2" * 64)
    changed = await prepare_weights(wanted, on_progress=quiet)
    assert changed.manifest_sha256 != folder.manifest_sha256


async def test_a_store_cannot_be_fetched_without_listed_files(model, tmp_path):
    manifest = unverified_manifest(model.path, tmp_path)
    wanted = settings(model.path.as_uri(), tmp_path, manifest=manifest)
    with pytest.raises(WeightsError, match="files"):
        await prepare_weights(wanted, on_progress=quiet)


async def test_the_hub_offline_is_a_plain_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="Is the Hub reachable") as caught:
        await prepare_weights(settings("hf://org/absent", tmp_path), on_progress=quiet)
    assert "\n" not in str(caught.value)


def test_the_shipped_manifest_states_the_real_models_limits(tmp_path):
    """With files in place it is a valid manifest; without, it lists none."""
    description = read_manifest_file(SHIPPED)
    assert description.manifest is None
    source = tmp_path / "weights"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"\0")
    folder = WeightsCache(tmp_path / "cache").adopt(source, description)
    manifest = open_model_folder(folder.path).manifest
    sizes = {str(size) for size in manifest.sizes}
    assert sizes == {"1280x704", "704x1280", "832x480", "480x832"}
    assert str(manifest.size_aliases["480p"]) == "832x480"
    assert (manifest.frames.min, manifest.frames.max, manifest.fps) == (5, 121, 24.0)
    assert (manifest.steps.min, manifest.steps.max, manifest.defaults.steps) == (1, 100, 50)
    assert (manifest.defaults.guidance_scale, manifest.defaults.flow_shift) == (5.0, 5.0)
