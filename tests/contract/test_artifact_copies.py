"""Copies of artifacts: one that is deleted takes none of the others along."""

import hashlib

import pytest

from gateway.output import local_names
from gateway.output.artifacts import ArtifactError, ArtifactMissing, open_store
from tests.support.artifacts import listed

DATA = bytes(range(256)) * 100
FACTS = {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
ONE, OTHER = "videos/ap-1/1-a.mp4", "videos/ap-2/1-b.mp4"


@pytest.fixture(params=["folder", "folder without links", "memory:///"])
async def store(request, tmp_path, monkeypatch):
    if request.param == "folder without links":

        def refuse(*_args, **_kwargs):
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(local_names.os, "link", refuse)
    memory = request.param.startswith("memory")
    found = open_store(request.param if memory else str(tmp_path))
    yield found
    await found.close()


async def keys(store):
    return sorted(artifact.key for artifact in await listed(store))


async def test_each_is_whole_and_is_deleted_for_itself(store):
    await store.put(ONE, DATA)
    await store.copy(ONE, OTHER, **FACTS)
    assert await keys(store) == [ONE, OTHER]
    await store.delete(ONE)
    assert await store.read(OTHER, 0, len(DATA)) == DATA
    await store.delete(OTHER)
    assert await keys(store) == []


async def test_what_is_gone_is_missing(store):
    with pytest.raises(ArtifactMissing):
        await store.copy(ONE, OTHER, **FACTS)
    assert await keys(store) == []


async def test_one_of_another_size_leaves_no_copy(store):
    await store.put(ONE, DATA + b"x")
    with pytest.raises(ArtifactError):
        await store.copy(ONE, OTHER, **FACTS)
    assert await keys(store) == [ONE]


async def test_in_a_folder_one_that_was_spoilt_leaves_no_copy(tmp_path):
    store = open_store(str(tmp_path))
    await store.put(ONE, DATA[:-1] + b"x")
    with pytest.raises(ArtifactError):
        await store.copy(ONE, OTHER, **FACTS)
    assert await keys(store) == [ONE]
    await store.close()
