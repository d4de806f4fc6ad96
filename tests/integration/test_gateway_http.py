"""The HTTP edge over a real server and the fake application."""

import asyncio
import json

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import errors
from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges

GOOD = {"prompt": "a red ball", "num_frames": 9, "seed": 7}


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found, asyncio.timeout(30):
        yield found


async def create(edges, **fields):
    body = {**GOOD, **fields}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        created = await answer.json()
        assert answer.status == 200, created
        return created


async def call(edges, method, path, *, headers=None, **kwargs):
    """Status, headers and body (parsed where it is JSON)."""
    headers = {**edges.bearer(), **(headers or {})}
    async with edges.http.request(method, path, headers=headers, **kwargs) as answer:
        data = await answer.read()
        if "json" in answer.headers.get("Content-Type", ""):
            data = json.loads(data)
        return answer.status, answer.headers, data


async def test_a_video_is_created_read_downloaded_and_deleted(edges):
    status, headers, created = await call(edges, "POST", "/v1/videos", json=GOOD)
    assert status == 200
    assert created["object"] == "video"
    assert created["status"] == "queued"
    path = f"/v1/videos/{created['id']}"
    assert headers["Location"] == path
    _status, _headers, video = await call(edges, "GET", path)
    assert video["status"] == "completed"
    _status, headers, data = await call(edges, "GET", f"{path}/content")
    assert headers["Content-Type"] == "video/mp4"
    assert f'filename="{created["id"]}.mp4"' in headers["Content-Disposition"]
    assert len(data) == video["result"]["size_bytes"]
    _status, _headers, deleted = await call(edges, "DELETE", path)
    assert deleted == {"id": created["id"], "object": "video.deleted", "deleted": True}
    status, _headers, problem = await call(edges, "GET", path)
    assert (status, problem["code"]) == (404, "video_not_found")


async def test_what_was_resolved_is_echoed_beside_what_was_asked_for(edges):
    created = await create(edges, num_frames=None, seconds="4", size="1280x720")
    assert created["size"] == "128x96"
    assert (created["width"], created["height"]) == (128, 96)
    assert (created["num_frames"], created["fps"], created["seconds"]) == (33, 8.0, "4")
    assert created["requested"] == {"resolution": "1280x720", "seconds": 4.0}
    assert created["seed"] == 7
    assert created["model_version"] == "1.0.0"
    assert created["error"] is None


async def test_a_priority_is_given_by_name_and_shown(edges):
    assert (await create(edges))["priority"] == "interactive"
    assert (await create(edges, priority="batch"))["priority"] == "batch"
    status, _, problem = await call(
        edges, "POST", "/v1/videos", json={"prompt": "a ball", "priority": "soon"}
    )
    assert status == 400
    [wrong] = problem["errors"]
    assert (wrong["field"], wrong["nearest"]) == ("priority", ["interactive", "batch"])


async def test_a_form_and_json_make_the_same_video(edges):
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in (
        ("prompt", "一只戴着墨镜的熊猫在跳街舞"),
        ("seconds", "2.5"),
        ("num_inference_steps", "3"),
        ("guidance_scale", "4.5"),
        ("seed", "9223372036854775807"),
        ("width", "96"),
        ("height", "128"),
    ):
        form.add_field(name, value)
    status, _headers, created = await call(edges, "POST", "/v1/videos", data=form)
    assert status == 200, created
    assert created["prompt"] == "一只戴着墨镜的熊猫在跳街舞"
    assert (created["num_inference_steps"], created["guidance_scale"]) == (3, 4.5)
    assert created["seed"] == 9223372036854775807
    assert (created["size"], created["num_frames"]) == ("96x128", 21)
    assert created["requested"]["seconds"] == 2.5


async def test_lists_page_by_after_limit_and_order(edges):
    made = [(await create(edges))["id"] for _ in range(3)]
    _s, _h, newest = await call(edges, "GET", "/v1/videos?limit=2")
    assert [v["id"] for v in newest["data"]] == made[:0:-1]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (made[2], made[1], True)
    _s, _h, rest = await call(edges, "GET", f"/v1/videos?limit=2&after={made[1]}")
    assert [v["id"] for v in rest["data"]] == [made[0]]
    assert rest["has_more"] is False
    _s, _h, oldest = await call(edges, "GET", "/v1/videos?order=asc")
    assert [v["id"] for v in oldest["data"]] == made
    _s, _h, other = await call(edges, "GET", "/v1/videos", headers=edges.bearer(tenant="other"))
    assert other == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A1", "limit"),
        ("order=random", "order"),
        ("after=none", "after"),
    ],
)
async def test_a_wrong_page_is_refused_by_the_name_of_its_parameter(edges, query, param):
    status, _headers, problem = await call(edges, "GET", f"/v1/videos?{query}")
    assert (status, problem["error"]["param"]) == (400, param)


async def test_a_key_makes_one_video_and_another_body_is_422(edges):
    headers = {"Idempotency-Key": "k-1"}
    _s, _h, first = await call(edges, "POST", "/v1/videos", json=GOOD, headers=headers)
    _s, _h, second = await call(edges, "POST", "/v1/videos", json=GOOD, headers=headers)
    assert first["id"] == second["id"]
    changed = {**GOOD, "prompt": "a blue ball"}
    status, answered, problem = await call(
        edges, "POST", "/v1/videos", json=changed, headers=headers
    )
    assert (status, problem["code"]) == (422, "idempotency_conflict")
    assert answered["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 129, "é"])
async def test_a_malformed_key_is_refused(edges, key):
    status, _headers, problem = await call(
        edges, "POST", "/v1/videos", json=GOOD, headers={"Idempotency-Key": key}
    )
    assert (status, problem["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_cancelled_video_reads_as_failed_with_a_code(edges):
    edges.application.hold = True
    created = await create(edges)
    path = f"/v1/videos/{created['id']}"
    _s, _h, cancelled = await call(edges, "POST", f"{path}/cancel")
    assert cancelled["status"] == "failed"
    assert cancelled["error"]["code"] == "cancelled"
    _s, _h, video = await call(edges, "GET", path)
    assert video["error"]["code"] == "cancelled"


async def test_a_failed_video_says_why(edges):
    edges.application.hold = True
    created = await create(edges)
    edges.application.fail(created["id"], code="worker_died", message="it died", retryable=True)
    _s, _h, video = await call(edges, "GET", f"/v1/videos/{created['id']}")
    assert video["status"] == "failed"
    assert video["error"] == {"code": "worker_died", "message": "it died", "retryable": True}


async def test_progress_is_told_while_it_runs(edges):
    edges.application.hold = True
    created = await create(edges)
    edges.application.progress(created["id"], 2)
    _s, _h, video = await call(edges, "GET", f"/v1/videos/{created['id']}")
    assert (video["status"], video["progress"]) == ("in_progress", 50)


async def test_a_remix_names_its_original(edges):
    created = await create(edges, size="1280x720", num_inference_steps=3)
    path = f"/v1/videos/{created['id']}/remix"
    key = {"Idempotency-Key": "again"}
    made = [
        await call(edges, "POST", path, json={"prompt": "a blue ball"}, headers=key)
        for _ in range(2)
    ]
    for status, headers, remix in made:
        assert (status, remix["id"]) == (200, made[0][2]["id"])
        assert headers["Location"] == f"/v1/videos/{remix['id']}"
        assert remix["remixed_from_video_id"] == created["id"]
        for name in ("size", "num_frames", "num_inference_steps", "seed", "guidance_scale"):
            assert remix[name] == created[name]
    assert created["remixed_from_video_id"] is None
    for body, status, param in (
        ({}, 400, "prompt"),
        ({"prompt": "x", "seed": -1}, 400, "seed"),
        ({"prompt": "x", "num_inference_steps": 0}, 400, "num_inference_steps"),
        ({"prompt": "x", "prompts": 1}, 400, "prompts"),
    ):
        found, _h, problem = await call(edges, "POST", path, json=body)
        assert (found, problem["error"]["param"]) == (status, param)
    other = edges.bearer(tenant="other")
    status, _h, problem = await call(edges, "POST", path, json={"prompt": "x"}, headers=other)
    assert (status, problem["code"]) == (404, "video_not_found")


# --- content ---


async def test_an_unfinished_video_has_no_content_and_no_retry_is_asked_for(edges):
    edges.application.hold = True
    created = await create(edges)
    status, headers, problem = await call(edges, "GET", f"/v1/videos/{created['id']}/content")
    assert (status, problem["code"]) == (409, "not_finished")
    assert headers["x-should-retry"] == "false"


# --- the rest of the surface ---


async def test_models_are_listed_in_openais_shape_with_their_limits(edges):
    _s, _h, models = await call(edges, "GET", "/v1/models")
    (model,) = models["data"]
    assert (model["id"], model["object"], model["pinned_id"]) == (
        "fake-t2v",
        "model",
        "fake-t2v@1.0.0",
    )
    assert model["default"] is True
    assert {"width_px": 128, "height_px": 96} in model["sizes"]
    assert model["frames"] == {"min": 5, "max": 97, "step": 4}


async def test_regions_are_listed(edges):
    _s, _h, regions = await call(edges, "GET", "/v1/regions")
    (region,) = regions["data"]
    assert (region["name"], region["state"], region["local"]) == ("ap", "serving", True)


async def test_health_readiness_and_metrics_need_no_token(edges):
    async with edges.http.get("/healthz") as answer:
        assert answer.status == 200
    async with edges.http.get("/readyz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ready")
    edges.application.readiness = (False, "no ready node")
    async with edges.http.get("/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"status": "not ready", "reason": "no ready node"}
    async with edges.http.get("/healthz") as answer:
        assert answer.status == 200
    async with edges.http.get("/metrics") as answer:
        assert answer.status == 200


async def test_metrics_count_by_template_and_never_by_path(edges):
    created = await create(edges)
    await call(edges, "GET", f"/v1/videos/{created['id']}")
    await call(edges, "GET", "/v1/videos/ap-unknown")
    await call(edges, "GET", "/some/thing/else")
    async with edges.http.get("/metrics") as answer:
        text = await answer.text()
    counts = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "reelmesh_gateway_requests_total":
                labels = sample.labels
                counts[labels["method"], labels["route"], labels["code"]] = sample.value
    assert counts["POST", "/v1/videos", "200"] == 1
    assert counts["GET", "/v1/videos/{video_id}", "200"] == 1
    assert counts["GET", "/v1/videos/{video_id}", "404"] == 1
    assert counts["GET", "unmatched", "404"] == 1
    assert created["id"] not in text
    assert "some/thing" not in text


async def test_the_callers_trace_goes_on(edges):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    _s, answered, _video = await call(edges, "POST", "/v1/videos", json=GOOD, headers=headers)
    assert trace_id in edges.application.traceparents[0]
    assert answered["x-request-id"] == trace_id


async def test_a_refusal_says_when_to_come_back(edges):
    edges.application.broken = errors.ResourceExhausted("the queue is full", retry_after_s=12.3)
    status, headers, problem = await call(edges, "POST", "/v1/videos", json=GOOD)
    assert (status, problem["code"], headers["Retry-After"]) == (429, "resource_exhausted", "13")
    assert problem["retryable"] is True
    assert "x-should-retry" not in headers
    edges.application.broken = errors.Unavailable("no node is ready", retry_after_s=0.2)
    status, headers, _problem = await call(edges, "POST", "/v1/videos", json=GOOD)
    assert (status, headers["Retry-After"]) == (503, "1")


async def test_an_unforeseen_error_is_told_without_detail(edges, caplog):
    edges.application.broken = RuntimeError("secret /var/lib/path")
    status, headers, problem = await call(edges, "GET", "/v1/videos")
    assert (status, problem["code"]) == (500, "internal")
    assert headers["Content-Type"].startswith("application/problem+json")
    assert "secret" not in json.dumps(problem)
    edges.application.broken = None
    assert (await call(edges, "GET", "/v1/videos"))[0] == 200


async def test_a_client_that_leaves_stops_its_handler(tmp_path):
    async with serve_edges(tmp_path, hold=True) as edges, asyncio.timeout(30):
        created = await create(edges)
        path = f"/v1/videos/{created['id']}/events"
        async with edges.http.get(path, headers=edges.bearer()) as answer:
            await answer.content.readline()
            assert edges.application.watchers(created["id"]) == 1
            answer.close()
        # The fake tells nobody that a watcher left; the deadline above bounds this.
        while edges.application.watchers(created["id"]):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)


async def open_raw(edges, method, path, *more):
    """A connection of our own, with a request's head sent."""
    host, port = edges.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_000)
    token = edges.bearer()["Authorization"]
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: {token}", *more, "", ""]
    writer.write("\r\n".join(lines).encode())
    return reader, writer


async def test_a_body_that_never_comes_is_408(tmp_path):
    config = EdgeConfig(body_timeout_s=0.05)
    async with serve_edges(tmp_path, config=config) as edges, asyncio.timeout(30):
        more = ("Content-Type: application/json", "Content-Length: 100")
        reader, writer = await open_raw(edges, "POST", "/v1/videos", *more)
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHos"])
async def test_a_connection_that_asks_for_nothing_is_closed(tmp_path, sent):
    async with (
        serve_edges(tmp_path, config=EdgeConfig(idle_timeout_s=0.1)) as edges,
        asyncio.timeout(30),
    ):
        host, port = edges.http_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_every_answer_is_signed_and_none_tells_the_librarys_version(edges):
    created = await create(edges)
    path = f"/v1/videos/{created['id']}"
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    for asked in (path, f"{path}/content", f"{path}/events", "/v1/nothing"):
        _status, answered, _body = await call(edges, "GET", asked, headers=headers)
        assert answered["Server"] == "reelmesh"
        assert answered["x-request-id"] == trace_id
