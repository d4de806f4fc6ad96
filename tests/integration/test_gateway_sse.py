"""A video's events over HTTP: order, resume, chunks, comments, and how a stream ends."""

import asyncio
import base64
import json

import pytest

from gateway import errors
from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    config = EdgeConfig(keepalive_s=0.05)
    async with serve_edges(tmp_path, config=config, hold=True) as found, asyncio.timeout(30):
        yield found


async def create(edges):
    body = {"prompt": "a red ball", "num_inference_steps": 4}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        return (await answer.json())["id"]


def parse(block):
    """One event as {field: value}; a comment as {"": text}."""
    found = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        found[name] = value.removeprefix(" ")
    if "data" in found:
        found["data"] = json.loads(found["data"])
    return found


async def read(edges, video_id, *, query="", headers=None):
    """Everything to the end of the stream, comments left out."""
    path = f"/v1/videos/{video_id}/events{query}"
    async with edges.http.get(path, headers={**edges.bearer(), **(headers or {})}) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        text = await answer.text()
    assert text.endswith("\n\n")
    blocks = [parse(block) for block in text[:-2].split("\n\n")]
    assert blocks[0] == {"retry": "2000"}
    return [block for block in blocks[1:] if "" not in block]


async def test_events_come_in_order_with_their_seq_as_id(edges):
    video_id = await create(edges)
    edges.application.progress(video_id, 1)
    edges.application.finish(video_id)
    events = await read(edges, video_id)
    assert [event["event"] for event in events] == ["queued", "started", "progress", "completed"]
    assert "id" not in events[0]
    for event in events[1:]:
        assert event["data"]["seq"] == int(event["id"]) > 0
    for event in events:
        assert event["data"]["type"] == event["event"]
        assert event["data"]["video_id"] == video_id
    progress = events[2]["data"]
    assert (progress["step"], progress["total_steps"], progress["stage"]) == (1, 4, "denoise")
    assert events[3]["data"]["size_bytes"] == 10_000


async def test_chunks_come_when_asked_for(edges):
    video_id = await create(edges)
    edges.application.finish(video_id)
    events = await read(edges, video_id, query="?chunks=1")
    chunks = [event["data"] for event in events if event["event"] == "chunk"]
    data = b"".join(base64.b64decode(chunk["data"]) for chunk in chunks)
    path = f"/v1/videos/{video_id}/content"
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        assert await answer.read() == data


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_stream_resumes_after_an_id(edges, how):
    video_id = await create(edges)
    edges.application.progress(video_id, 1)
    edges.application.progress(video_id, 2)
    edges.application.finish(video_id)
    last = (await read(edges, video_id))[2]["id"]
    if how == "header":
        events = await read(edges, video_id, headers={"Last-Event-ID": last})
    else:
        events = await read(edges, video_id, query=f"?after_seq={last}")
    assert [event["event"] for event in events] == ["queued", "progress", "completed"]
    assert events[1]["data"]["step"] == 2


async def test_a_resume_inside_a_superseded_attempt_is_told_to_throw_it_away(edges):
    video_id = await create(edges)
    edges.application.progress(video_id, 1)
    edges.application.send(video_id, until=5_000)
    path = f"/v1/videos/{video_id}/events?chunks=1"
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        last = 0
        while last < 3:
            line = (await answer.content.readline()).decode()
            last += line.startswith("id: ")
        seen = line.removeprefix("id: ").strip()
    edges.application.restart(video_id)
    edges.application.finish(video_id)
    events = await read(edges, video_id, query="?chunks=1", headers={"Last-Event-ID": seen})
    assert [event["event"] for event in events[:2]] == ["queued", "restarted"]
    assert events[1]["data"]["attempt"] == 2
    ids = [int(event["id"]) for event in events[1:]]
    assert ids == sorted(ids)
    assert ids[0] > int(seen)
    chunks = [event["data"] for event in events if event["event"] == "chunk"]
    data = b"".join(base64.b64decode(chunk["data"]) for chunk in chunks)
    assert len(data) == events[-1]["data"]["size_bytes"]
    # Wherever it is cut, and taken up again, nothing is missing and nothing comes twice.
    for cut in range(1, len(events) - 1):
        rest = await read(
            edges, video_id, query="?chunks=1", headers={"Last-Event-ID": events[cut]["id"]}
        )
        assert [event["id"] for event in rest[1:]] == [event["id"] for event in events[cut + 1 :]]


async def test_after_the_last_event_there_is_nothing_more_to_come_for(edges):
    video_id = await create(edges)
    edges.application.finish(video_id)
    last = (await read(edges, video_id))[-1]["id"]
    headers = {**edges.bearer(), "Last-Event-ID": last}
    async with edges.http.get(f"/v1/videos/{video_id}/events", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_events_arrive_as_they_happen_and_silence_is_filled(edges):
    video_id = await create(edges)
    path = f"/v1/videos/{video_id}/events"
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        lines = answer.content

        async def until(text):
            while text not in (line := await lines.readline()).decode():
                assert line

        await until("event: queued")
        await until(": keepalive")
        edges.application.progress(video_id, 1)
        await until("event: progress")
        await until(": keepalive")
        edges.application.finish(video_id)
        await until("event: completed")


async def test_a_cancelled_video_ends_its_streams(edges):
    video_id = await create(edges)
    reading = asyncio.ensure_future(read(edges, video_id))
    while not edges.application.watchers(video_id):  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    async with edges.http.post(f"/v1/videos/{video_id}/cancel", headers=edges.bearer()):
        pass
    events = await reading
    assert events[-1]["event"] == "cancelled"
    assert events[-1]["data"]["reason"] == "client"


async def test_an_error_in_the_middle_is_told_in_the_stream(edges, monkeypatch):
    video_id = await create(edges)
    whole = edges.application.watch

    async def breaking(caller, watched_id, *, after_seq):
        async for event in whole(caller, watched_id, after_seq=after_seq):
            yield event
            raise errors.Unavailable("the video cannot be read now", retry_after_s=5.0)

    monkeypatch.setattr(edges.application, "watch", breaking)
    events = await read(edges, video_id)
    assert [event["event"] for event in events] == ["queued", "error"]
    assert events[-1]["data"]["code"] == "unavailable"


async def test_an_unforeseen_error_in_the_middle_cuts_the_stream(edges, monkeypatch):
    video_id = await create(edges)

    async def breaking(_caller, _watched_id, *, after_seq):
        raise RuntimeError(str(after_seq))
        yield

    monkeypatch.setattr(edges.application, "watch", breaking)
    path = f"/v1/videos/{video_id}/events"
    with pytest.raises(Exception, match=r"(?i)payload|disconnected"):
        async with edges.http.get(path, headers=edges.bearer()) as answer:
            await answer.read()


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("?after_seq=x", {}, "after_seq"),
        ("?after_seq=-1", {}, "after_seq"),
        ("?after_seq=18446744073709551616", {}, "after_seq"),
        ("", {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ("?chunks=yes", {}, "chunks"),
    ],
)
async def test_wrong_parameters_are_named(edges, query, headers, param):
    video_id = await create(edges)
    path = f"/v1/videos/{video_id}/events{query}"
    async with edges.http.get(path, headers={**edges.bearer(), **headers}) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["error"]["param"]) == (400, param)


async def test_a_prompt_with_line_breaks_stays_one_event(edges):
    body = {"prompt": "two\n\nevents: one\r\ndata: false"}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        video_id = (await answer.json())["id"]
    edges.application.finish(video_id)
    events = await read(edges, video_id)
    assert [event["event"] for event in events] == ["queued", "started", "completed"]
    assert events[0]["data"]["spec"]["prompt"] == body["prompt"]
