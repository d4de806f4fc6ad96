"""Weights from a server that speaks the Hub's protocol, through the real huggingface_hub."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.model_folder import ModelFolder, open_model_folder, write_manifest
from node_agent.weights import prepare_weights
from tests.support.etcd import free_port
from tests.support.fakehub import FakeHub
from tests.support.fakeworker import write_fake_model
from tests.support.faultproxy import Direction, FaultProxy
from tests.support.models import DEMO_MODEL

DEMO = open_model_folder(DEMO_MODEL)
DEMO_BYTES = sum(entry.size_bytes for entry in DEMO.manifest.files)
DEMO_FILES = {entry.path for entry in DEMO.manifest.files}
VAE = "vae/diffusion_pytorch_model.safetensors"
NAME = "reelmesh/wan-demo"
TOKEN = "hf_aTokenThatNoErrorMayShow"


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
async def hub(tmp_path, monkeypatch):
    home = tmp_path / "hf-home"
    home.mkdir()
    # What the library asks for once a day, before anything else.
    (home / ".agent_harnesses.json").write_text('{"standardEnvVars": [], "harnesses": {}}')
    monkeypatch.setenv("HF_HOME", str(home))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    async with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{hub.address}")
        yield hub


@pytest.fixture
async def behind_proxy(hub, monkeypatch):
    async with FaultProxy(hub.address) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{proxy.address}")
        yield proxy


@pytest.fixture
def repository(tmp_path):
    """The demo model as one finds models on the Hub: with files that nobody asked for."""
    folder = tmp_path / "repository"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "README.md").write_text("a card")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "old.safetensors").write_bytes(b"of another layout")
    return folder


@pytest.fixture
def small(tmp_path):
    """A repository of one file with its manifest."""
    return write_fake_model(tmp_path / "small").path


def without_files(folder: Path, tmp_path: Path) -> Path:
    """The manifest moved out of the repository, its list of files left out."""
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    manifest = tmp_path / "apart.json"
    manifest.write_text(json.dumps({**fields, "files": None}))
    return manifest


def settings(tmp_path: Path, source: str = f"hf://{NAME}", **changes: object) -> ModelSettings:
    return ModelSettings(source=source, cache_dir=tmp_path / "cache", **changes)


def served(tmp_path: Path) -> list[str]:
    """Folders of the cache that would be taken for complete."""
    return [p.name for p in (tmp_path / "cache").glob("*") if (p / "manifest.json").exists()]


async def fetched(wanted: ModelSettings) -> ModelFolder:
    """A folder that holds the manifest's files and nothing else, as the worker demands."""
    folder = await prepare_weights(wanted, on_progress=quiet)
    folder.verify_files()
    return folder


async def refusal(wanted: ModelSettings) -> str:
    """The error's one line, which holds no secret and comes soon."""
    began_s = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        await prepare_weights(wanted, on_progress=quiet)
    said = str(caught.value)
    assert "\n" not in said
    assert TOKEN not in said
    assert time.monotonic() - began_s < 15
    return said


async def test_the_manifests_files_of_a_revision_are_fetched(hub, repository, tmp_path):
    hub.add(NAME, repository, "v1")
    (repository / VAE).write_bytes(b"another revision")
    hub.add(NAME, repository, "main")
    told: list[tuple[int, int]] = []
    wanted = settings(tmp_path, f"hf://{NAME}@v1")
    folder = await prepare_weights(wanted, on_progress=lambda *line: told.append(line))
    folder.verify_files()
    assert folder.manifest_sha256 == DEMO.manifest_sha256
    assert told[-1] == (DEMO_BYTES, DEMO_BYTES)
    assert hub.files_asked() == DEMO_FILES | {"manifest.json"}
    # The next start asks whether the revision has moved, and for nothing else.
    hub.asked.clear()
    assert (await fetched(wanted)).path == folder.path
    assert hub.files_asked() == set()


async def test_with_listed_files_at_hand_the_next_start_needs_no_hub(hub, repository, tmp_path):
    manifest = tmp_path / "apart.json"
    (repository / "manifest.json").rename(manifest)
    hub.add(NAME, repository)
    wanted = settings(tmp_path, manifest=manifest)
    folder = await fetched(wanted)
    assert hub.files_asked() == DEMO_FILES
    hub.asked.clear()
    assert (await fetched(wanted)).path == folder.path
    assert hub.asked == []


async def test_a_private_repository_is_fetched_with_the_token(hub, small, tmp_path, monkeypatch):
    hub.add(NAME, small)
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    await fetched(settings(tmp_path))
    assert hub.tokens == {TOKEN}


async def test_unlisted_files_are_fetched_with_a_warning_and_outlive_the_hub(
    hub, small, tmp_path, monkeypatch
):
    (small / "notes.md").write_text("not of a model")
    manifest = without_files(small, tmp_path)
    hub.add(NAME, small)
    wanted = settings(tmp_path, manifest=manifest)
    with capture_logs() as logs:
        folder = await fetched(wanted)
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "unverified" in logs[0]["event"]
    assert hub.files_asked() == {"weights.safetensors"}
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert (await fetched(wanted)).path == folder.path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (await fetched(wanted)).path == folder.path


async def test_a_branch_that_moved_is_fetched_anew(hub, small, tmp_path):
    manifest = without_files(small, tmp_path)
    hub.add(NAME, small)
    first = await fetched(settings(tmp_path, manifest=manifest))
    (small / "weights.safetensors").rename(small / "other.safetensors")
    hub.add(NAME, small)
    second = await fetched(settings(tmp_path, manifest=manifest))
    assert [entry.path for entry in first.manifest.files] == ["weights.safetensors"]
    assert [entry.path for entry in second.manifest.files] == ["other.safetensors"]


async def test_half_a_repository_is_never_served(
    hub, behind_proxy, repository, tmp_path, monkeypatch
):
    """Without listed files nothing would notice that some are missing."""
    manifest = without_files(repository, tmp_path)
    hub.add(NAME, repository)
    wanted = settings(tmp_path, manifest=manifest)
    behind_proxy.delay(0.01)
    vae_came = asyncio.Event()
    target = tmp_path / "cache" / "hub" / NAME.replace("/", "--")

    def look(_done: int, _total: int) -> None:
        if (target / VAE).exists():
            vae_came.set()

    fetching = asyncio.create_task(prepare_weights(wanted, on_progress=look))
    await asyncio.wait_for(vae_came.wait(), 20)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    behind_proxy.cut(refuse=True)
    assert "Is the Hub reachable" in await refusal(wanted)
    assert served(tmp_path) == []
    behind_proxy.heal()
    before = behind_proxy.bytes_to_client
    folder = await fetched(wanted)
    assert {entry.path for entry in folder.manifest.files} == DEMO_FILES | {"old.safetensors"}
    # What was whole is not fetched again; of what was not, nothing is left behind.
    assert (
        behind_proxy.bytes_to_client - before < DEMO_BYTES - (DEMO_MODEL / VAE).stat().st_size / 2
    )
    assert list(target.rglob("*.incomplete")) == []


async def test_a_cut_connection_is_gone_on_with(hub, behind_proxy, tmp_path):
    origin = tmp_path / "origin"
    fields = write_fake_model(origin).manifest.model_dump(mode="json", exclude={"files"})
    # The library writes blocks of 10 MiB: what came after the last one comes again.
    (origin / "weights.safetensors").write_bytes(bytes(11 * 1024 * 1024))
    write_manifest(origin, fields)
    hub.add(NAME, origin)
    behind_proxy.cut_after(11_000_000)
    await fetched(settings(tmp_path))
    assert any("bytes=" in line for line in hub.asked)


@pytest.mark.parametrize("listed", [True, False])
async def test_a_file_that_was_altered_on_its_way_is_refused_and_fetched_again(
    hub, small, tmp_path, listed
):
    manifest = None if listed else without_files(small, tmp_path)
    hub.add(NAME, small)
    wanted = settings(tmp_path, manifest=manifest)
    hub.tamper = lambda path, data: data[:-1] + b"\1" if path.endswith("tensors") else data
    said = await refusal(wanted)
    assert "weights.safetensors" in said
    assert "sha256" in said
    assert served(tmp_path) == []
    hub.tamper = None
    await fetched(wanted)


async def test_a_repository_that_the_manifest_was_not_made_for_is_not_even_begun(
    hub, repository, tmp_path
):
    (repository / VAE).write_bytes(b"another")
    (repository / "model_index.json").unlink()
    hub.add(NAME, repository)
    said = await refusal(settings(tmp_path))
    assert f"model_index.json is missing; {VAE} is another one" in said
    assert hub.files_asked() == {"manifest.json"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://reelmesh/absent", "there is no such repository, or it is private"),
        (f"hf://{NAME}@v9", "the repository has no revision v9"),
        ("hf://no/such/name", "Repo id must be"),
    ],
)
async def test_what_is_not_on_the_hub_is_said_plainly(hub, small, tmp_path, source, said):
    hub.add(NAME, small)
    assert said in await refusal(settings(tmp_path, source))


async def test_a_repository_without_manifest_costs_no_download(hub, repository, tmp_path):
    (repository / "manifest.json").unlink()
    hub.add(NAME, repository)
    assert "name one in model.manifest" in await refusal(settings(tmp_path))
    assert hub.files_asked() == set()


@pytest.mark.parametrize(
    ("token", "said"), [(None, "or set HF_TOKEN"), ("hf_old" + TOKEN, "refuses the token")]
)
async def test_a_token_that_is_missing_or_refused(hub, small, tmp_path, monkeypatch, token, said):
    hub.add(NAME, small)
    hub.token = TOKEN
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert said in await refusal(settings(tmp_path))


async def test_a_hub_that_never_answers_is_given_up(hub, behind_proxy, small, tmp_path):
    hub.add(NAME, small)
    behind_proxy.hold(Direction.TO_CLIENT)
    assert "Is the Hub reachable" in await refusal(settings(tmp_path, fetch_stall_s=3.0))


async def test_a_hub_that_falls_silent_midway_is_given_up(hub, behind_proxy, repository, tmp_path):
    hub.add(NAME, repository)
    behind_proxy.delay(0.01)

    def hold(done: int, _total: int) -> None:
        if done > DEMO_BYTES / 3:
            behind_proxy.hold(Direction.TO_CLIENT)

    with pytest.raises(WeightsError, match="sent nothing for 1 s"):
        await prepare_weights(settings(tmp_path, fetch_stall_s=1.0), on_progress=hold)
    assert served(tmp_path) == []
