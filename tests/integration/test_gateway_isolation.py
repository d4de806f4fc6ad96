"""A tenant never learns whether another's video exists: every operation of both edges.

The tests walk the access table and the messages' descriptors, so that a new endpoint is
looked at by itself. One that names a thing of a new kind fails until :data:`MADE` says how
such a thing is made.
"""

import asyncio
import re
from dataclasses import dataclass

import aiohttp
import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import peer_service_pb2, video_pb2, video_service_pb2

from gateway.application import FROM_PEER, FROM_REGION
from gateway.auth.access import ACCESS
from gateway.edge_http.openapi import document
from tests.support import fakenode
from tests.support.batch_clients import BatchClient
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, Caller

pytestmark = pytest.mark.timeout(90)

OTHER = "globex"
STRANGER = Caller(OTHER, "them", ME.scopes)
GUARDED = [endpoint for endpoint, scope in ACCESS.items() if scope is not None]
# Parts of paths that are the same for everybody.
SHARED = {"name"}
# What a client calls its own things; it names nothing that there is.
LABELS = {"custom_id"}
# Fields further inside a request that name a tenant's thing, each with a test of its own here.
INSIDE = {"supersedes", "remixed_from_video_id"}


def placeholders(endpoint):
    return set(re.findall(r"{(\w+)}", endpoint)) - SHARED


def method_of(endpoint):
    return descriptor_pool.Default().FindMethodByName(endpoint[1:].replace("/", "."))


def id_fields(message):
    """Top-level fields of a request that name a thing."""
    return {f.name for f in message.fields if f.name.endswith("_id") and not f.is_repeated}


def inner_id_fields(message, seen=frozenset()):
    """The same of the messages inside it."""
    for field in message.fields:
        inner = field.message_type
        if inner is None or inner.full_name in seen:
            continue
        names = {f.name for f in inner.fields if f.cpp_type == FieldDescriptor.CPPTYPE_STRING}
        yield from (n for n in names if n.endswith("_id") or n == "supersedes")
        yield from inner_id_fields(inner, seen | {inner.full_name})


ROUTES = [e for e in GUARDED if " " in e and placeholders(e)]
RPCS = [e for e in GUARDED if " " not in e and id_fields(method_of(e).input_type)]


async def a_video(region, member):
    video = await member.create()
    await region.until(lambda: region.node_of(video.id))
    return video.id


async def a_batch(region, member):
    items = {"items": [{"prompt": "a ball"}]}
    return (await BatchClient(region, member).submit(items))["id"]


def nobodys(own_id):
    """An id of the same home and kind; of a batch ``batch_ap-...``."""
    home, _, _ulid = own_id.rpartition("-")
    return f"{home}-{'0' * 26}"


# By placeholder or field: what makes the owner's thing, and what makes an id like it of nothing.
MADE = {"video_id": (a_video, nobodys), "batch_id": (a_batch, nobodys)}


def test_every_kind_of_thing_that_an_endpoint_names_is_known_here():
    named = set().union(*map(placeholders, ROUTES))
    named |= set().union(*(id_fields(method_of(rpc).input_type) for rpc in RPCS))
    assert named <= MADE.keys(), f"say in MADE how these are made: {named - MADE.keys()}"
    inside = {
        name
        for rpc in GUARDED
        if " " not in rpc
        for name in inner_id_fields(method_of(rpc).input_type)
    }
    inside -= LABELS
    assert inside <= INSIDE, f"test what these let a tenant learn: {inside - INSIDE}"


@dataclass
class Site:
    """Two gateways of a region, both by both edges, and who may ask."""

    region: object
    members: tuple
    http: aiohttp.ClientSession
    channels: list

    def headers(self, tenant):
        return {"Authorization": f"Bearer {self.region.issuer.issue(tenant=tenant)}"}

    def metadata(self, tenant):
        return (("authorization", f"Bearer {self.region.issuer.issue(tenant=tenant)}"),)

    async def asked(self, member, endpoint, ids, tenant=OTHER, **more):
        """What a route says: status, headers and body, with the ids taken out."""
        method, _, template = endpoint.partition(" ")
        path = template.format(**ids, name="any")
        url = f"http://{member.app.http_address}{path}"
        headers = {**self.headers(tenant), **more.pop("headers", {})}
        if method == "POST":
            more.setdefault("json", {"prompt": "a ball"})
        async with self.http.request(method, url, headers=headers, **more) as answer:
            text = await answer.text()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _EACH_ITS_OWN}
        for name in ids.values():
            text = text.replace(name, "ID")
        return answer.status, kept, text

    async def called(self, member, endpoint, ids, tenant=OTHER):
        """What an RPC says: status, text and details."""
        request = GetMessageClass(method_of(endpoint).input_type)(**ids)
        return await self.refusal(member, endpoint, request, self.metadata(tenant))

    async def refusal(self, member, endpoint, request, metadata, *, address=None):
        channel = self.channels[self.members.index(member)]
        if address is not None:
            channel = aio.insecure_channel(address)
        make = channel.unary_stream if method_of(endpoint).server_streaming else channel.unary_unary
        call = make(endpoint)(request.SerializeToString(), metadata=metadata, timeout=10)
        try:
            await (call.read() if method_of(endpoint).server_streaming else call)
        except aio.AioRpcError as error:
            info = error_details_pb2.ErrorInfo()
            status = rpc_status.from_call(error)
            for detail in status.details:
                detail.Unpack(info)
            return error.code(), error.details(), info.reason, dict(info.metadata)
        finally:
            if address is not None:
                await channel.close()
        return grpc.StatusCode.OK, "", "", {}


_EACH_ITS_OWN = {"date", "x-request-id", "content-length"}


@pytest.fixture
async def site(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=2)) as region:
        members = await region.pair()
        channels = [aio.insecure_channel(member.app.grpc_address) for member in members]
        async with aiohttp.ClientSession() as http, asyncio.timeout(60):
            yield Site(region, members, http, channels)
        for channel in channels:
            await channel.close()


@pytest.fixture
async def things(site):
    """Ids of the owner's: of what goes on, and of what has ended."""
    owner = site.members[0]
    live = {name: await make(site.region, owner) for name, (make, _) in MADE.items()}
    done = {name: await make(site.region, owner) for name, (make, _) in MADE.items()}
    if "video_id" in done:
        site.region.run_of(done["video_id"]).go.set()
        await owner.watched(done["video_id"])
    return [live, done]


def nothing(ids):
    return {name: MADE[name][1](value) for name, value in ids.items()}


def only(ids, names):
    return {name: value for name, value in ids.items() if name in names}


async def test_every_route_says_of_anothers_what_it_says_of_nothing(site, things):
    for endpoint in ROUTES:
        for member in site.members:
            for ids in things:
                theirs = only(ids, placeholders(endpoint))
                told = await site.asked(member, endpoint, theirs)
                assert told[0] == 404, (endpoint, told)
                assert told == await site.asked(member, endpoint, nothing(theirs)), endpoint
    await unharmed(site, things)


def queries_of(endpoint):
    """Each value of each parameter that the document names for a route, one at a time."""
    method, _, template = endpoint.partition(" ")
    operation = document(version="0")["paths"][template][method.lower()]
    for parameter in operation.get("parameters", ()):
        schema = parameter.get("schema", {})
        kinds = schema.get("type")
        if parameter["in"] == "query":
            for value in schema.get("enum") or (["1"] if kinds != "string" else ["x"]):
                yield {parameter["name"]: str(value)}


async def test_no_parameter_of_a_route_tells_anothers_from_nothing(site, things):
    tried = 0
    for endpoint in ROUTES:
        for query in queries_of(endpoint):
            for member in site.members:
                for ids in things:
                    theirs = only(ids, placeholders(endpoint))
                    told = await site.asked(member, endpoint, theirs, params=query)
                    assert told[0] == 404, (endpoint, query, told)
                    none = await site.asked(member, endpoint, nothing(theirs), params=query)
                    assert told == none, (endpoint, query)
                    tried += 1
    assert tried
    await unharmed(site, things)


async def test_every_rpc_says_of_anothers_what_it_says_of_nothing(site, things):
    for endpoint in RPCS:
        for member in site.members:
            for ids in things:
                theirs = only(ids, id_fields(method_of(endpoint).input_type))
                told = await site.called(member, endpoint, theirs)
                assert told[0] is grpc.StatusCode.NOT_FOUND, (endpoint, told)
                assert told == await site.called(member, endpoint, nothing(theirs)), endpoint
    await unharmed(site, things)


async def unharmed(site, things):
    """The owner still has everything as it was."""
    live, done = (ids["video_id"] for ids in things)
    for member in site.members:
        assert (await member.videos.get(ME, live)).status == video_pb2.VIDEO_STATUS_RUNNING
        assert (await member.videos.get(ME, done)).status == video_pb2.VIDEO_STATUS_COMPLETED
        found = await member.videos.download(ME, done, offset=0)
        assert b"".join([data async for data in found.chunks]) == fakenode.VIDEO


PEER = peer_service_pb2.DESCRIPTOR.services_by_name["PeerService"]
PEER_RPCS = [
    f"/{PEER.full_name}/{method.name}" for method in PEER.methods if id_fields(method.input_type)
]


@pytest.mark.parametrize("hops", [FROM_REGION, FROM_PEER])
async def test_a_gateway_asked_by_another_keeps_tenants_apart_too(site, things, hops):
    identity = peer_service_pb2.PeerIdentity(
        tenant=OTHER, subject="them", scopes=sorted(ME.scopes), hops=hops
    )
    assert PEER_RPCS
    for endpoint in PEER_RPCS:
        for member, other in (site.members, site.members[::-1]):
            owner = member.core.owner
            address = other.core.gateways.address_of(owner.gateway_id, owner.incarnation)
            for ids in things:
                answers = []
                for asked in (ids, nothing(ids)):
                    known = only(asked, id_fields(method_of(endpoint).input_type))
                    request = GetMessageClass(method_of(endpoint).input_type)(
                        identity=identity, **known
                    )
                    answers.append(
                        await site.refusal(member, endpoint, request, (), address=address)
                    )
                assert answers[0][0] is grpc.StatusCode.NOT_FOUND, (endpoint, answers)
                assert answers[0] == answers[1], endpoint
    await unharmed(site, things)


@pytest.mark.parametrize("seq", ["0", "1", "4294967297", "18446744073709551615"])
async def test_a_resume_of_anothers_events_is_a_resume_of_nothing(site, things, seq):
    for member in site.members:
        for ids in things:
            answers = [
                await site.asked(
                    member,
                    "GET /v1/videos/{video_id}/events",
                    asked,
                    headers={"Last-Event-ID": seq},
                )
                for asked in (ids, nothing(ids))
            ]
            assert answers[0][0] == 404
            assert answers[0] == answers[1]


async def test_lists_hold_ones_own_alone_on_every_page(site):
    a, b = site.members
    own = {ME: [], STRANGER: []}
    for number in range(6):
        caller = (ME, STRANGER)[number % 2]
        own[caller].append((await a.create(caller=caller, prompt=f"{number}")).id)
    theirs = own[ME]
    for member in (a, b):
        for order in ("asc", "desc"):
            seen, after = [], {}
            while True:
                params = {"limit": "1", "order": order, **after}
                url = f"http://{member.app.http_address}/v1/videos"
                headers = site.headers(OTHER)
                async with site.http.get(url, params=params, headers=headers) as answer:
                    page = await answer.json()
                seen += [video["id"] for video in page["data"]]
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
            assert sorted(seen) == sorted(own[STRANGER])
            # A page after another's video is a page after an id between one's own.
            for video_id in theirs:
                params = {"limit": "10", "order": order, "after": video_id}
                async with site.http.get(url, params=params, headers=headers) as answer:
                    page = await answer.json()
                assert {video["id"] for video in page["data"]} <= set(own[STRANGER])
    for video_id in (*theirs, nobodys(theirs[0])):
        request = video_service_pb2.ListVideosRequest(page_size=10, page_token=video_id)
        videos, _ = await b.videos.list_page(
            STRANGER, page_size=request.page_size, page_token=request.page_token
        )
        assert {video.id for video in videos} <= set(own[STRANGER])


async def test_no_page_that_names_no_thing_shows_anothers(site, things):
    pages = [e for e in GUARDED if e.startswith("GET ") and "{" not in e]
    assert {"GET /v1/videos", "GET /v1/batches"} <= set(pages)
    for endpoint in pages:
        for member in site.members:
            status, _, text = await site.asked(member, endpoint, {})
            assert status == 200
            for value in (value for ids in things for value in ids.values()):
                assert value not in text, endpoint


async def test_an_idempotency_key_is_its_tenants_own(site):
    made = {}
    for tenant, prompt in (("acme", "a ball"), (OTHER, "something else")):
        for member in site.members:
            url = f"http://{member.app.http_address}/v1/videos"
            headers = {**site.headers(tenant), "Idempotency-Key": "the-same"}
            async with site.http.post(url, json={"prompt": prompt}, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                made.setdefault(tenant, set()).add((await answer.json())["id"])
    # The same for one tenant wherever it asks, and another for the other.
    assert [len(ids) for ids in made.values()] == [1, 1]
    assert not made["acme"] & made[OTHER]


@pytest.mark.parametrize("field", sorted(INSIDE))
async def test_naming_anothers_video_in_a_request_does_nothing_to_it(site, things, field):
    endpoint = "/reelmesh.v1.VideoService/CreateVideo"
    for member in site.members:
        for ids in things:
            answers = []
            for named in (ids["video_id"], nothing(ids)["video_id"]):
                request = video_service_pb2.CreateVideoRequest(
                    spec=video_pb2.VideoSpec(prompt="a ball"),
                    options=video_service_pb2.CreateOptions(**{field: named}),
                )
                told = await site.refusal(member, endpoint, request, site.metadata(OTHER))
                answers.append((told[0], told[2], told[3]))
            assert answers[0] == answers[1]
    await unharmed(site, things)


async def test_what_is_open_to_all_names_no_tenant_and_no_video(site, things):
    for member in site.members:
        for path in ("/metrics", "/healthz", "/readyz", "/openapi.json", "/docs"):
            async with site.http.get(f"http://{member.app.http_address}{path}") as answer:
                text = await answer.text()
            assert ME.tenant not in text, path
            assert not any(ids["video_id"] in text for ids in things), path
