"""reelctl model against a real control plane: folders, a real S3 server, the Hub's protocol."""

from __future__ import annotations

import asyncio
import json
import pickle

import grpc
import obstore
import pytest
import yaml
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import registry_pb2 as reg

from control_plane.reelctl.app import run
from control_plane.store.memory import MemoryStore
from node_agent.manifest import Manifest
from reelkit.clock import SystemClock
from tests.support.fakehub import FakeHub
from tests.support.models import DEMO_MODEL
from tests.support.operators import OPERATE, READ, operated
from tests.support.s3 import s3_environment
from tests.support.stores import eventually
from tests.support.weights import safetensors, signing_key, write_weights


@pytest.fixture
async def client(tmp_path):
    """A control plane's client, and a mesh.json that names it."""
    async with (
        MemoryStore(clock=SystemClock()) as store,
        operated(tmp_path, store=store) as (app, client),
    ):
        token = client.issuer.issue(scope=f"{READ} {OPERATE}", sub="ops", tenant=None)
        document = {
            "regions": {"ap": {"operator": app.operator_address}},
            "tokens": {"operator": token},
        }
        (tmp_path / "mesh.json").write_text(json.dumps(document))
        yield client


@pytest.fixture
def reelctl(tmp_path, capfd):
    async def ran(*argv, mesh=True):
        capfd.readouterr()
        arguments = [*map(str, argv), *(["--mesh", str(tmp_path)] if mesh else [])]
        code = await asyncio.to_thread(run, ["model", *arguments])
        out, err = capfd.readouterr()
        return code, "".join(f"{x}\n" for x in out.splitlines() if "[info" not in x), err

    return ran


@pytest.fixture
def key(tmp_path):
    return signing_key(tmp_path)


@pytest.fixture
def register(reelctl, key):
    async def registered(source, *argv, name="small", version="v1"):
        argv = ("--version", version, "--from", source, "--key", key[1], *argv)
        return await reelctl("register", name, *argv, "-o", "json")

    return registered


async def stored(client, name="small", version="v1"):
    request = op.GetRegisteredModelRequest(name=name, version=version)
    return (await client.call("GetRegisteredModel", request)).model


async def test_a_folder_is_registered_shown_and_verified(client, reelctl, register, tmp_path, key):
    folder = write_weights(tmp_path / "w")
    code, out, _ = await register(folder)
    assert code == 0
    told = json.loads(out)
    assert (told["name"], told["state"], told["kind"]) == ("small", "active", "model")
    assert told["sources"] == [folder.as_uri()]
    assert told["registered_by"] == "ops"
    model = await stored(client)
    manifest = Manifest.model_validate_json(model.manifest)
    assert (manifest.name, manifest.version) == ("small", "v1")
    assert {entry.path for entry in manifest.files} == {
        *("config.json", "text/model.safetensors", "vae/model.safetensors")
    }
    assert model.signatures[0].key_id == key[0].public.key_id
    code, out, _ = await reelctl("show", "small@v1", "--files")
    assert code == 0
    assert manifest.files[0].sha256 in out
    code, out, _ = await reelctl("show", "small@v1", "-o", "yaml")
    assert yaml.safe_load(out)["files"][0]["path"] == "config.json"
    await eventually(lambda: listed(reelctl))
    _, out, _ = await reelctl("list")
    assert out.splitlines()[1].split()[:3] == ["small@v1", "model", "active"]
    code, out, _ = await reelctl("verify", "small@v1", "--public-key", key[2])
    assert code == 0
    assert f"3 files are as registered, signed by {key[0].public.key_id}" in out


async def listed(reelctl):
    _, out, _ = await reelctl("list", "-o", "json")
    return bool(json.loads(out))


async def test_verify_says_which_file_was_altered(client, reelctl, register, tmp_path):
    folder = write_weights(tmp_path / "w")
    await register(folder)
    altered = folder / "vae" / "model.safetensors"
    altered.write_bytes(altered.read_bytes()[:-1] + b"\1")
    (folder / "config.json").unlink()
    code, out, err = await reelctl("verify", "small@v1")
    assert code == 1
    assert "vae/model.safetensors: its sha256 is" in out
    assert "config.json: is missing" in out
    assert "text/" not in out
    assert "2 of small@v1's files" in err
    code, out, _ = await reelctl("verify", "small@v1", "-o", "json")
    assert (code, len(json.loads(out)["sources"][0]["problems"])) == (1, 2)


async def test_verify_knows_whose_signature_it_is(client, reelctl, register, tmp_path):
    await register(write_weights(tmp_path / "w"))
    _, _, other = signing_key(tmp_path, "other.key")
    code, _, err = await reelctl("verify", "small@v1", "--public-key", other)
    assert code == 1
    assert "it is not signed by" in err


async def test_the_same_again_is_fine_and_other_content_is_not(client, register, tmp_path):
    folder = write_weights(tmp_path / "w")
    assert (await register(folder))[0] == 0
    first = await stored(client)
    code, _, err = await register(folder)
    assert code == 0
    assert "registered already, with the same content" in err
    assert await stored(client) == first
    # The same elsewhere is one more source.
    assert (await register(write_weights(tmp_path / "copy")))[0] == 0
    assert len((await stored(client)).sources) == 2
    other = write_weights(tmp_path / "other", files={"model.safetensors": 9})
    code, _, err = await register(other)
    assert code == 1
    assert "registered with other content" in err
    assert "a version never changes" in err
    assert (await register(other, version="v2"))[0] == 0


async def test_a_manifest_that_lists_these_files_is_kept_as_it_is(client, register):
    own = (DEMO_MODEL / "manifest.json").read_bytes()
    said = {field: json.loads(own)[field] for field in ("name", "version")}
    code, _, _ = await register(DEMO_MODEL, **said)
    assert code == 0
    assert (await stored(client, **said)).manifest == own


def renamed_pickle(folder):
    (folder / "vae" / "model.safetensors").write_bytes(pickle.dumps([1.0] * 1000))


def stray_bytes(folder):
    with (folder / "vae" / "model.safetensors").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: .bin files"),
        (lambda f: (f / "a.ckpt").write_bytes(b"x"), "a.ckpt"),
        (lambda f: (f / "modeling.py").write_text("import os"), "modeling.py: .py files are code"),
        (renamed_pickle, "vae/model.safetensors: is no safetensors file"),
        (stray_bytes, "vae/model.safetensors: its tensors take"),
        (lambda f: (f / "spiece.model").write_bytes(pickle.dumps(1)), "spiece.model: begins as a"),
        (lambda f: (f / "link.json").symlink_to("/etc/passwd"), "link.json: is a symbolic link"),
    ],
    ids=["bin", "ckpt", "code", "renamed-pickle", "stray-bytes", "pickle-as-model", "symlink"],
)
async def test_what_could_run_is_refused(client, register, tmp_path, spoil, said):
    folder = write_weights(tmp_path / "w")
    spoil(folder)
    code, _, err = await register(folder)
    assert code == 1
    assert said in err
    answer = await client.call("ListRegisteredModels", op.ListRegisteredModelsRequest())
    assert not answer.models


async def test_what_does_not_belong_can_be_left_out_by_name(client, register, tmp_path):
    folder = write_weights(tmp_path / "w")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "README.md").write_text("hello")
    code, _, err = await register(folder, "--exclude", "*.bin")
    assert code == 0
    assert "left out: README.md, pytorch_model.bin" in err
    assert (await stored(client)).file_count == 3


async def test_an_adapter_is_registered_with_its_base(client, reelctl, register, tmp_path):
    folder = write_weights(tmp_path / "w", files={"lora.safetensors": 3}, described=False)
    code, _, err = await register(folder)
    assert code == 2
    assert "has no manifest.json" in err
    code, _, err = await register(folder, "--kind", "lora")
    assert code == 2
    assert "belong together" in err
    code, _, _ = await register(folder, "--kind", "lora", "--base", "wan", name="inks")
    assert code == 0
    model = await stored(client, "inks")
    assert (model.kind, model.base) == (reg.MODEL_KIND_LORA, "wan")


async def test_a_key_is_needed_unless_said_otherwise(client, reelctl, tmp_path, monkeypatch):
    folder = write_weights(tmp_path / "w")
    options = ("register", "small", "--version", "v1", "--from", folder)
    code, _, err = await reelctl(*options)
    assert code == 2
    assert "there is no key to sign with" in err
    assert (await reelctl(*options, "--unsigned"))[0] == 0
    assert not (await stored(client)).signatures
    # Signed later: the same content, one more signature.
    _, private, _ = signing_key(tmp_path)
    private.chmod(0o644)
    code, _, err = await reelctl(*options, "--key", private)
    assert (code, "chmod 600" in err) == (2, True)
    private.chmod(0o600)
    monkeypatch.setenv("REELCTL_MODEL_KEY", str(private))
    assert (await reelctl(*options))[0] == 0
    assert len((await stored(client)).signatures) == 1


async def test_keys_are_made_once(reelctl, tmp_path):
    code, out, _ = await reelctl("keys", "init", tmp_path / "a.key", mesh=False)
    assert code == 0
    key_id = out.split()[1]
    _, out, _ = await reelctl("keys", "show", tmp_path / "a.key.pub", mesh=False)
    assert out == f"{key_id}\n"
    code, _, err = await reelctl("keys", "init", tmp_path / "a.key", mesh=False)
    assert code == 2
    assert "never written over" in err


async def test_retiring_compares_and_is_taken_back(client, reelctl, register, tmp_path):
    await register(write_weights(tmp_path / "w"))
    code, out, _ = await reelctl("retire", "small@v1", "--reason", "worse")
    assert (code, out) == (0, "small@v1 is retired\n")
    model = await stored(client)
    assert (model.state, model.reason) == (reg.REGISTRATION_STATE_RETIRED, "worse")
    stale = op.SetModelStateRequest(name="small", version="v1", state=1, revision=1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.call("SetModelState", stale)
    assert raised.value.code() is grpc.StatusCode.ABORTED
    code, _, err = await reelctl("prefetch", "small@v1")
    assert (code, "is retired" in err) == (1, True)
    assert (await reelctl("retire", "small@v1", "--undo"))[0] == 0
    assert (await reelctl("prefetch", "small@v1"))[0] == 0
    code, _, err = await reelctl("retire", "small@v1")
    assert (code, "take its prefetch back" in err) == (1, True)
    assert (await reelctl("prefetch", "small@v1", "--stop"))[0] == 0
    assert (await reelctl("retire", "small@v1"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "small"], "write NAME@VERSION"),
        (["show", "no@v1"], "no@v1 is not registered"),
        (["prefetch", "no@v1"], "no@v1 is not registered"),
        (["prefetch", "no@v1", "--stop"], "nothing of no@v1 was ordered"),
        (["verify", "no@v1"], "not registered"),
        (["register", "Bad Name", "--version", "v1", "--unsigned"], "must be 1 to 63"),
        (["register", "m", "--version", "v 1", "--unsigned"], "must be 1 to 63"),
    ],
)
async def test_what_cannot_be_is_told(client, reelctl, tmp_path, arguments, said):
    if arguments[0] == "register":
        arguments = [*arguments, "--from", write_weights(tmp_path / "w")]
    code, _, err = await reelctl(*arguments)
    assert code in (1, 2)
    assert said in err


async def test_a_long_manifest_lies_beside_the_weights(client, reelctl, register, tmp_path):
    files = {f"part-{number:03}/model.safetensors": number for number in range(120)}
    folder = write_weights(tmp_path / "w", files=files, size_bytes=10, described=False)
    apart = tmp_path / "apart.json"
    write_weights(tmp_path / "described")
    (tmp_path / "described" / "manifest.json").rename(apart)
    code, _, _ = await register(folder, "--manifest", apart)
    assert code == 0
    model = await stored(client)
    assert (model.manifest, model.ByteSize() < 16_384) == (b"", True)
    assert len((folder / "manifest.json").read_bytes()) == model.manifest_size_bytes > 11_000
    code, out, _ = await reelctl("verify", "small@v1")
    assert (code, "121 files" in out) == (0, True)
    code, out, _ = await reelctl("show", "small@v1", "--files")
    assert (code, "part-119" in out) == (0, True)
    (folder / "manifest.json").write_text("{}")
    code, _, err = await reelctl("verify", "small@v1")
    assert (code, "not the one that was registered" in err) == (1, True)


async def test_a_huge_manifest_is_not_read(client, register, tmp_path):
    folder = write_weights(tmp_path / "w")
    (folder / "manifest.json").write_bytes(b" " * 5_000_000)
    code, _, err = await register(folder)
    assert (code, "larger than a manifest may be" in err) == (1, True)


async def test_what_lies_in_s3_is_read_where_it_is(
    client, reelctl, register, tmp_path, s3_server, monkeypatch
):
    for name, value in s3_environment().items():
        monkeypatch.setenv(name, value)
    folder = write_weights(tmp_path / "w")
    url = s3_server.upload(folder, f"registry/{tmp_path.name}")
    options = s3_server.options()
    where = [f"--store-option={name}={value}" for name, value in options["store_options"].items()]
    where += [f"--client-option={k}={v}" for k, v in options["client_options"].items()]
    code, _, err = await register(url, *where)
    assert code == 0, err
    assert list((await stored(client)).sources) == [url]
    # The same from a folder, to be served from the bucket.
    code, _, _ = await register(folder, "--serve-from", url)
    assert code == 0
    assert list((await stored(client)).sources) == [url]
    code, out, _ = await reelctl("verify", "small@v1", *where)
    assert code == 0, out
    obstore.put(
        s3_server.store(f"registry/{tmp_path.name}"), "vae/model.safetensors", safetensors(9, 9)
    )
    code, out, _ = await reelctl("verify", "small@v1", *where)
    assert (code, "vae/model.safetensors: has" in out) == (1, True)


async def test_the_hubs_commit_is_what_is_registered(
    client, reelctl, register, tmp_path, monkeypatch
):
    import huggingface_hub.constants

    folder = write_weights(tmp_path / "w")
    async with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://{hub.address}")
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://{hub.address}")
        commit = hub.add("org/small", folder)
        code, _, err = await register("hf://org/small")
        assert code == 0, err
        model = await stored(client)
        assert list(model.sources) == [f"hf://org/small@{commit}"]
        # Of large files the header alone was read: the Hub vouches for their digests.
        reads = [line for line in hub.asked if "/content/" in line]
        assert reads
        assert all("bytes=" in line for line in reads)
        # The branch moves on; the version stays.
        (folder / "vae" / "model.safetensors").write_bytes(safetensors(300_000, 77))
        hub.add("org/small", folder)
        code, out, err = await reelctl("verify", "small@v1")
        assert (code, "3 files are as registered" in out) == (0, True), err
        code, _, err = await register("hf://org/small")
        assert (code, "other content" in err) == (1, True)
        code, _, err = await register("hf://org/absent", version="v2")
        assert code == 1
        assert "HF_ENDPOINT" in err
