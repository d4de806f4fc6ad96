"""What operators say of tenants holds at every gateway, within a second, and stays."""

import asyncio
import json
import time

import aiohttp
import grpc
import pytest
from grpc import aio
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import tenant_pb2

from control_plane.reelctl.app import run
from tests.support.stores import eventually
from tests.support.tenants import operated_region

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def mesh(tmp_path):
    """A gateway, its control plane, and an operator of both, of one issuer."""
    async with operated_region(tmp_path) as (region, operators):
        gateway = await region.start("a")
        async with aiohttp.ClientSession() as http:
            yield Mesh(region, gateway, operators.client, http)


class Mesh:
    def __init__(self, region, gateway, client, http):
        self.region = region
        self.gateway = gateway
        self.client = client
        self.http = http

    async def create(self, **fields):
        url = f"http://{self.gateway.app.http_address}/v1/videos"
        headers = {"Authorization": f"Bearer {self.region.issuer.issue()}"}
        body = {"prompt": "a red ball", **fields}
        async with self.http.post(url, headers=headers, json=body) as answer:
            return answer.status, await answer.json()

    async def field_refused(self, **fields):
        """The field of a limit that is passed, None where the request is taken."""
        _, body = await self.create(**fields)
        return body["errors"][0]["field"] if "errors" in body else None

    async def set(self, tenant="acme", revision=0, **fields):
        policy = tenant_pb2.TenantPolicy(tenant=tenant, revision=revision, **fields)
        request = op.SetTenantRequest(tenant=policy)
        return (await self.client.call("SetTenant", request)).tenant


@pytest.fixture
def reelctl(tmp_path, capfd):
    async def ran(*argv):
        capfd.readouterr()
        code = await asyncio.to_thread(run, ["tenant", *argv, "--mesh", str(tmp_path)])
        out, err = capfd.readouterr()
        lines = [line for line in out.splitlines() if "[info" not in line]
        return code, "\n".join(lines) + "\n", err

    return ran


async def test_a_limit_set_live_holds_within_a_second_and_is_lifted_again(mesh):
    async def refused():
        return await mesh.field_refused() == "num_inference_steps"

    async def taken():
        return not await refused()

    assert await taken()
    began_s = time.monotonic()
    made = await mesh.set(max_steps=1)
    await eventually(refused)
    assert time.monotonic() - began_s < 1.0
    assert (made.updated_by, made.revision > 0) == ("ops", True)
    assert await mesh.field_refused(num_inference_steps=1) is None
    await mesh.client.call(
        "UnsetTenant", op.UnsetTenantRequest(tenant="acme", revision=made.revision)
    )
    await eventually(taken)


async def test_the_default_holds_for_those_without_a_policy_of_their_own(mesh):
    await mesh.set("*", max_steps=1)

    async def refused():
        return await mesh.field_refused() == "num_inference_steps"

    await eventually(refused)
    await mesh.set(max_frames=1000)

    async def taken():
        return not await refused()

    await eventually(taken)


async def test_policies_hold_while_the_control_plane_is_away(mesh):
    await mesh.set(max_steps=1)

    async def refused():
        return await mesh.field_refused() == "num_inference_steps"

    await eventually(refused)
    await mesh.region.control.drain()
    assert await refused()


async def test_two_operators_do_not_undo_each_other(mesh):
    first = await mesh.set(max_steps=10)
    for revision in (0, first.revision - 1):
        with pytest.raises(aio.AioRpcError) as raised:
            await mesh.set(revision=revision, max_frames=9)
        assert raised.value.code() is grpc.StatusCode.ABORTED
    second = await mesh.set(revision=first.revision, max_steps=10, max_frames=9)
    answer = await mesh.client.call("GetTenant", op.GetTenantRequest(tenant="acme"))
    assert answer.tenant == second
    stale = op.UnsetTenantRequest(tenant="acme", revision=first.revision)
    with pytest.raises(aio.AioRpcError) as raised:
        await mesh.client.call("UnsetTenant", stale)
    assert raised.value.code() is grpc.StatusCode.ABORTED


async def test_changes_of_different_limits_at_once_are_all_kept(mesh, reelctl):
    wishes = [("--max-steps", "7"), ("--max-frames", "9"), ("--weight", "2"), ("--burst", "4")]
    await mesh.set(requests_per_second=100.0)
    answers = await asyncio.gather(*(reelctl("set", "acme", *wish) for wish in wishes))
    assert [code for code, _, _ in answers] == [0, 0, 0, 0]
    policy = (await mesh.client.call("GetTenant", op.GetTenantRequest(tenant="acme"))).tenant
    assert (policy.max_steps, policy.max_frames, policy.weight, policy.burst) == (7, 9, 2.0, 4)


async def test_people_and_programs_read_policies(mesh, reelctl):
    assert (await reelctl("list"))[2].strip() == "No tenant has a policy: none is limited."
    code, out, _ = await reelctl(
        *("set", "acme", "--requests-per-second", "5", "--burst", "10"),
        *("--concurrent-jobs", "20", "--queued-jobs", "10", "--gpu-seconds-per-day", "3600"),
        *("--max-size", "1280x704", "--max-steps", "50", "--max-frames", "121"),
        *("--model", "demo", "--model", "wan@v1", "--priority", "batch", "--weight", "2"),
        *("--min-steps-percent", "60", "--cache-sharing", "shared"),
    )
    assert code == 0
    assert ["models", "demo,", "wan@v1"] in [line.split() for line in out.splitlines()]
    code, out, _ = await reelctl("set", "acme", "--clear", "burst", "-o", "json")
    assert "burst" not in json.loads(out)
    _, out, _ = await reelctl("show", "acme", "-o", "json")
    shown = json.loads(out)
    assert (shown["max_size"], shown["priority"]) == ("1280x704", "batch")
    assert shown["updated_by"]
    await mesh.set("*", max_steps=4)
    _, out, err = await reelctl("show", "other")
    assert 'that of "*" holds' in err
    assert ["max-steps", "4"] in [line.split() for line in out.splitlines()]
    _, out, _ = await reelctl("list")
    header, *rows = out.splitlines()
    assert [row.split()[0] for row in rows] == ["*", "acme"]
    assert header.index("JOBS") + 4 == rows[1].index("20") + 2
    assert (await reelctl("unset", "acme"))[0] == 0
    code, _, err = await reelctl("unset", "acme")
    assert code == 1
    assert "no policy of its own" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "acme"], "name a limit to set"),
        (["set", "acme", "--burst", "3"], "means nothing without requests_per_second"),
        (["set", "acme", "--burst", "3", "--clear", "burst"], "set and cleared at once"),
        (["set", "acme", "--queued-jobs", "-1"], "--clear queued-jobs"),
        (["set", "acme", "--max-size", "big"], "write WIDTHxHEIGHT"),
        (["set", "acme", "--min-steps-percent", "200"], "the nearest is 100"),
    ],
)
async def test_what_means_nothing_is_told(mesh, reelctl, arguments, said):
    code, _, err = await reelctl(*arguments)
    assert code == 2
    assert said in err


async def test_looking_needs_less_than_changing(mesh):
    read = mesh.region.issuer.issue(sub="ops", scope="fleet:read", tenant=None)
    await mesh.client.call("ListTenants", op.ListTenantsRequest(), token=read)
    for method, request in (
        ("SetTenant", op.SetTenantRequest()),
        ("UnsetTenant", op.UnsetTenantRequest()),
    ):
        with pytest.raises(aio.AioRpcError) as raised:
            await mesh.client.call(method, request, token=read)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
