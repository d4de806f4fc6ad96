"""A region's nodes are told what to have, get it from one another, and keep it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import registry_pb2 as reg
from reelmesh.v1.weights_service_pb2 import ReadFileRequest
from reelmesh.v1.weights_service_pb2_grpc import WeightsServiceStub

from control_plane.keys import GlobalKeys
from control_plane.reelctl.app import run
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Put
from reelkit.clock import SystemClock
from reelkit.mtls.identity import Role
from tests.support.mtls_region import mutual_region
from tests.support.nodes import node_config, running_node
from tests.support.operators import OPERATE, READ, operated
from tests.support.registries import registration
from tests.support.stores import eventually
from tests.support.weights import signing_key, write_weights

pytestmark = pytest.mark.timeout(120)
VERIFIED, FAILED = reg.WEIGHTS_STATE_VERIFIED, reg.WEIGHTS_STATE_FAILED
FILES = {f"{letter}/model.safetensors": number for number, letter in enumerate("abcdef")}


@pytest.fixture
def key(tmp_path):
    return signing_key(tmp_path)


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as store:
        yield store


@pytest.fixture
async def control(tmp_path, store):
    async with operated(tmp_path, store=store) as (app, client):
        token = client.issuer.issue(scope=f"{READ} {OPERATE}", sub="ops", tenant=None)
        document = {
            "regions": {"ap": {"operator": app.operator_address}},
            "tokens": {"operator": token},
        }
        (tmp_path / "mesh.json").write_text(json.dumps(document))
        yield app


@pytest.fixture
def reelctl(tmp_path, control, capfd):
    async def ran(*argv):
        capfd.readouterr()
        arguments = ["model", *map(str, argv), "--mesh", str(tmp_path)]
        code = await asyncio.to_thread(run, arguments)
        out, err = capfd.readouterr()
        # Nodes of this process log to the same place.
        lines = [line for line in out.splitlines() if not line.startswith("20")]
        return code, "\n".join(lines) + "\n", err

    return ran


@pytest.fixture
def node(tmp_path, control, key):
    """Starts a node of the region."""

    @contextlib.asynccontextmanager
    async def started(node_id, **registry):
        folder = tmp_path / node_id
        folder.mkdir(exist_ok=True)
        settings = {"trusted_keys": [str(key[2])], **registry}
        config = node_config(folder, node_id=node_id, control_planes=[control.address])
        model = config.model.model_copy(update={"cache_dir": folder / "cache"})
        section = type(config.registry).model_validate(settings)
        config = config.model_copy(update={"model": model, "registry": section})
        async with running_node(config) as made:
            await made.until_ready()
            yield made

    return started


def status_of(node, version="v1"):
    return next(
        (each for each in node.app.board.current.weights if each.version == version),
        reg.WeightsStatus(),
    )


async def test_a_region_draws_one_copy_and_every_node_has_it(tmp_path, reelctl, node, key, control):
    folder = write_weights(tmp_path / "w", files=FILES)
    code, _, err = await reelctl(
        "register", "small", *("--version", "v1", "--from", folder), "--key", key[1]
    )
    assert code == 0, err
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(f"n{number}")) for number in range(6)]
        code, out, err = await reelctl("prefetch", "small@v1", "--wait", "--wait-timeout", "60")
        assert code == 0, err
        assert [line.split()[2:4] for line in out.splitlines()[1:]] == [
            ["n0", "verified"],
            ["n1", "verified"],
            *[[f"n{k}", "verified"] for k in range(2, 6)],
        ]
        statuses = [status_of(each) for each in nodes]
        size_bytes = statuses[0].total_bytes
        assert [each.done_bytes for each in statuses] == [size_bytes] * 6
        # About one: a node whose turn it has become does not wait for peers without end.
        assert size_bytes <= sum(each.origin_bytes for each in statuses) < 1.5 * size_bytes
        # Whoever comes later needs no source.
        shutil.rmtree(folder)
        late = await stack.enter_async_context(node("n9"))
        await late.until(lambda s: [w.state for w in s.weights] == [VERIFIED])
        assert status_of(late).origin_bytes == 0
        # What they served goes on being served meanwhile, and after.
        assert all(each.app.board.current.models[0].name == "fake" for each in nodes)
        code, out, _ = await reelctl("prefetch", "-o", "json")
        told = json.loads(out)[0]
        assert {each["state"] for each in told["nodes"]} == {"verified"}
        assert (await reelctl("prefetch", "small@v1", "--stop"))[0] == 0
        await eventually(lambda: not nodes[0].app.board.current.weights)


async def test_an_order_for_some_nodes_is_for_those(tmp_path, reelctl, node, key):
    folder = write_weights(tmp_path / "w")
    await reelctl("register", "small", "--version", "v1", "--from", folder, "--key", key[1])
    async with node("n0") as first, node("n1") as second:
        code, out, _ = await reelctl("prefetch", "small@v1", "--node", "n1", "--wait")
        assert (code, len(out.splitlines())) == (0, 2)
        assert status_of(second).state == VERIFIED
        assert not first.app.board.current.weights
        code, _, err = await reelctl("prefetch", "small@v1", "--region", "eu", "--wait")
        assert (code, "none of them is attached" in err) == (1, True)
        await eventually(lambda: not second.app.board.current.weights)


async def test_a_failure_is_told_with_its_reason_and_heals(tmp_path, reelctl, node, key):
    folder = write_weights(tmp_path / "w")
    await reelctl("register", "small", "--version", "v1", "--from", folder, "--key", key[1])
    good = (folder / "vae/model.safetensors").read_bytes()
    (folder / "vae/model.safetensors").write_bytes(good[:-1] + b"\1")
    async with node("n0") as one, node("n1"):
        code, _, err = await reelctl("prefetch", "small@v1", "--wait", "--wait-timeout", "4")
        assert code == 1
        assert "0 of 2 nodes have it" in err
        await eventually(lambda: "its sha256 differs" in status_of(one).reason)
        _, out, _ = await reelctl("prefetch")
        assert "its sha256 differs" in out
        # It serves what it served, undisturbed.
        assert one.app.board.current.models[0].name == "fake"
        (folder / "vae/model.safetensors").write_bytes(good)
        code, _, err = await reelctl("prefetch", "small@v1", "--wait", "--wait-timeout", "60")
        assert code == 0, err


async def test_what_a_node_has_survives_its_restart_and_the_control_planes_absence(
    tmp_path, reelctl, node, key, control
):
    folder = write_weights(tmp_path / "w")
    await reelctl("register", "small", "--version", "v1", "--from", folder, "--key", key[1])
    async with node("n0"):
        assert (await reelctl("prefetch", "small@v1", "--wait"))[0] == 0
    shutil.rmtree(folder)
    async with node("n0") as again:
        status = await again.until(lambda s: [w.state for w in s.weights] == [VERIFIED])
        assert status.weights[0].origin_bytes == 0
        digest = status.weights[0].manifest_sha256
        await control.drain()
        assert again.app.prefetcher.folder_of(digest) is not None
        assert status_of(again).state == VERIFIED


async def test_nodes_of_the_region_alone_read_from_a_node_over_mutual_tls(tmp_path, key):
    folder = write_weights(tmp_path / "w")
    model = registration(folder, key=key[1])
    keys = GlobalKeys(prefix="/reelmesh")
    order = reg.PrefetchOrder(name="small", version="v1")
    async with mutual_region(tmp_path) as region:

        async def add(node_id):
            cache = {
                "source": str(tmp_path / node_id / "model"),
                "cache_dir": str(tmp_path / f"{node_id}-cache"),
            }
            registry = {"trusted_keys": [str(key[2])]}
            return await region.add_node(node_id, model=cache, registry=registry)

        first = await add("n1")
        await region.store.txn(
            [],
            [
                Put(keys.model_version("small", "v1"), model.SerializeToString()),
                Put(keys.prefetch("small", "v1"), order.SerializeToString()),
            ],
        )
        await eventually(lambda: [w.state for w in first.board.current.weights] == [VERIFIED])
        shutil.rmtree(folder)
        second = await add("n2")
        await eventually(lambda: [w.state for w in second.board.current.weights] == [VERIFIED])
        assert second.board.current.weights[0].origin_bytes == 0
        request = ReadFileRequest(sha256="0" * 64)
        for place, role, code in (
            ("ap", Role.NODE, grpc.StatusCode.NOT_FOUND),
            ("eu", Role.NODE, grpc.StatusCode.PERMISSION_DENIED),
            ("ap", Role.GATEWAY, grpc.StatusCode.PERMISSION_DENIED),
        ):
            channels = region.channels(place, role, "x1")
            async with channels.open(first.address, role=Role.NODE, region="ap") as channel:
                with pytest.raises(aio.AioRpcError) as raised:
                    await WeightsServiceStub(channel).ReadFile(request, timeout=20).read()
                assert raised.value.code() is code
