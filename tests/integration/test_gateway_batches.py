"""A batch in a region: accepted whole, made a few at a time, answered for by any gateway."""

import asyncio
import hashlib
import io
import json
import zipfile

import aiohttp
import pytest
from reelmesh.v1 import video_pb2

from tests.support import fakenode
from tests.support.batch_clients import QUICK, BatchClient, counts, rows
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region

SHA256 = hashlib.sha256(VIDEO).hexdigest()


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path) as region:
        yield region


async def test_a_template_and_its_rows_become_videos_under_one_record(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    made = await client.submit(rows(5, defaults={"size": "480p"}, metadata={"of": "spring"}))
    assert made["object"] == "batch"
    assert made["id"].startswith("batch_ap-")
    assert made["counts"]["total"] == 5
    assert (made["priority"], made["durable"]) == ("batch", True)
    done = await client.until_ended(made["id"])
    assert (done["status"], counts(done)) == ("completed", {"total": 5, "completed": 5})
    assert done["metadata"] == {"of": "spring"}
    assert done["completed_at"] >= done["created_at"]
    items = await client.items(made["id"])
    assert [item["prompt"] for item in items] == [f"a red cup {n} spins" for n in range(5)]
    assert [item["custom_id"] for item in items] == [f"c{n}" for n in range(5)]
    assert {item["sha256"] for item in items} == {SHA256}
    record = await region.record(items[0]["video_id"])
    assert record.video.batch_id == made["id"]
    listed = await client.ask("GET", "/v1/batches")
    assert [each["id"] for each in listed["data"]] == [made["id"]]


async def test_its_videos_are_kept_as_long_as_it_is(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    made = await client.submit({"items": [{"prompt": "a ball"}]})
    done = await client.until_ended(made["id"])
    (item,) = await client.items(made["id"])
    record = await region.record(item["video_id"])
    assert record.video.expires_at.seconds >= done["expires_at"]


async def test_results_are_a_manifest_of_links_or_a_zip(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    made = await client.submit(rows(3))
    await client.until_ended(made["id"])
    manifest = await client.ask("GET", f"/v1/batches/{made['id']}/results")
    assert [each["sha256"] for each in manifest["data"]] == [SHA256] * 3
    assert await client.ask("GET", manifest["data"][1]["content"]) == VIDEO
    lines = await client.ask("GET", f"/v1/batches/{made['id']}/results?format=jsonl")
    assert [json.loads(line) for line in lines.splitlines()] == manifest["data"]
    data = await client.ask("GET", f"/v1/batches/{made['id']}/results?format=zip")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    names = ["00000-c0.mp4", "00001-c1.mp4", "00002-c2.mp4"]
    assert archive.namelist() == [*names, "manifest.jsonl"]
    assert all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
    assert [archive.read(name) for name in names] == [VIDEO] * 3
    inside = [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]
    assert [each["file"] for each in inside] == names


async def test_nothing_is_accepted_by_halves_and_every_mistake_is_told(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    body = rows(3)
    body["rows"][0].pop("color")
    body["rows"][1]["num_frames"] = 16
    body["rows"][2]["colour"] = "red"
    body["rows"][2]["custom_id"] = "c1"
    problem = await client.submit(body, status=400)
    told = {each["field"]: each for each in problem["errors"]}
    assert told.keys() == {
        "rows[0].color",
        "rows[1].num_frames",
        "rows[2].colour",
        "rows[2].custom_id",
    }
    assert told["rows[1].num_frames"]["nearest"] == ["17", "13"]
    assert "color" in told["rows[2].colour"]["nearest"]
    assert (await client.ask("GET", "/v1/batches"))["data"] == []
    assert not any(node.runs for node in region.nodes)


async def test_one_key_makes_one_batch(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    first = await client.submit(rows(2), key="k")
    again = await client.submit(rows(2), key="k")
    assert again["id"] == first["id"]
    problem = await client.submit(rows(3), key="k", status=422)
    assert problem["code"] == "idempotency_conflict"


async def test_another_tenant_sees_nothing_of_it(region):
    a = await region.start("a", **QUICK)
    mine, other = BatchClient(region, a), BatchClient(region, a, tenant="globex")
    made = await mine.submit(rows(1))
    await mine.until_ended(made["id"])
    path = f"/v1/batches/{made['id']}"
    for method, suffix in (
        ("GET", ""),
        ("GET", "/items"),
        ("GET", "/results"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        problem = await other.ask(method, path + suffix, status=404)
        assert problem["code"] == "batch_not_found"
    assert (await other.ask("GET", "/v1/batches"))["data"] == []


async def test_a_bounded_number_is_under_way_and_a_full_queue_only_slows_it_down(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=1)) as region:
        a = await region.start(
            "a",
            batches={"checkpoint_s": 0.05, "max_in_flight_per_batch": 3},
            runs={"max_waiting": 1},
        )
        client = BatchClient(region, a)
        made = await client.submit(rows(8))
        most = 0
        async with asyncio.timeout(60):
            while (batch := await client.get(made["id"]))["status"] != "completed":
                most = max(most, a.core.lifetimes.live)
                for node in region.nodes:
                    for run in list(node.live.values()):
                        run.go.set()
                await asyncio.sleep(0.02)
        assert counts(batch) == {"total": 8, "completed": 8}
        assert 1 <= most <= 3


async def test_a_failed_item_fails_itself_alone(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    region.nodes[0].default = region.nodes[1].default = fakenode.fail("out_of_memory")
    made = await client.submit(rows(2))
    done = await client.until_ended(made["id"])
    assert (done["status"], counts(done)) == ("completed", {"total": 2, "failed": 2})
    items = await client.items(made["id"])
    assert {item["error"]["code"] for item in items} == {"out_of_memory"}
    data = await client.ask("GET", f"/v1/batches/{made['id']}/results?format=zip")
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["manifest.jsonl"]


async def test_a_cancel_stops_what_runs_and_begins_no_more(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=1)) as region:
        a, b = await region.pair(**QUICK)
        client, other = BatchClient(region, a), BatchClient(region, b)
        made = await client.submit(rows(20))
        await client.until(made["id"], lambda batch: batch["counts"]["running"] > 0)
        # Another gateway than its owner is asked.
        answer = await other.ask("POST", f"/v1/batches/{made['id']}/cancel")
        assert answer["status"] == "cancelling"
        done = await other.until_ended(made["id"])
        assert (done["status"], counts(done)) == ("cancelled", {"total": 20, "cancelled": 20})
        assert a.core.lifetimes.live == 0
        items = await other.items(made["id"])
        assert {item["status"] for item in items} == {"cancelled"}
        begun = [item for item in items if item["video_id"]]
        for item in begun:
            record = await region.record(item["video_id"])
            assert record.video.status == video_pb2.VIDEO_STATUS_CANCELLED
        again = await client.ask("POST", f"/v1/batches/{made['id']}/cancel")
        assert again["status"] == "cancelled"


async def test_deletion_removes_items_outcomes_and_videos(region, tmp_path):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    made = await client.submit(rows(3))
    await client.until_ended(made["id"])
    items = await client.items(made["id"])
    artifacts = tmp_path / "artifacts"
    assert list((artifacts / "batches").rglob("items-*"))
    assert list((artifacts / "batches").rglob("outcomes-*"))
    await client.ask("DELETE", f"/v1/batches/{made['id']}")
    await client.ask("GET", f"/v1/batches/{made['id']}", status=404)
    files = lambda: [p for p in artifacts.rglob("*") if p.is_file() and "gateways" not in str(p)]  # noqa: E731
    await a.until(lambda: not files())
    for item in items:
        await client.ask("GET", f"/v1/videos/{item['video_id']}", status=404)
    assert (await client.ask("GET", "/v1/batches"))["data"] == []


async def test_one_that_goes_on_is_not_deleted(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=1)) as region:
        a = await region.start("a", **QUICK)
        client = BatchClient(region, a)
        made = await client.submit(rows(1))
        problem = await client.ask("DELETE", f"/v1/batches/{made['id']}", status=409)
        assert problem["code"] == "batch_not_finished"
        assert (await client.get(made["id"]))["status"] in ("queued", "in_progress")


async def test_one_whose_time_is_over_expires_and_is_swept_with_all_it_has(region, tmp_path):
    a = await region.start(
        "a", batches={"checkpoint_s": 0.05, "max_lifetime_s": 0.3, "retention_s": 0.5}
    )
    for node in region.nodes:
        node.default = fakenode.held(before=1)
    client = BatchClient(region, a)
    made = await client.submit(rows(4))
    done = await client.until_ended(made["id"])
    assert (done["status"], counts(done)) == ("expired", {"total": 4, "cancelled": 4})
    async with asyncio.timeout(20):
        while done["expires_at"] >= a.app.core.lifetimes._clock.wall() - 1:  # noqa: ASYNC110 - of a clock
            await asyncio.sleep(0.05)
    await a.app.batches.purge.sweep()
    await client.ask("GET", f"/v1/batches/{made['id']}", status=404)
    assert not [p for p in (tmp_path / "artifacts" / "batches").rglob("*") if p.is_file()]


async def test_pages_of_items(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)
    made = await client.submit(rows(7))
    await client.until_ended(made["id"])
    path = f"/v1/batches/{made['id']}/items?limit=3"
    first = await client.ask("GET", path)
    assert ([item["index"] for item in first["data"]], first["has_more"]) == ([0, 1, 2], True)
    last = await client.ask("GET", f"{path}&after=5")
    assert ([item["index"] for item in last["data"]], last["has_more"]) == ([6], False)
    problem = await client.ask("GET", f"{path}&after=9", status=400)
    assert problem["errors"][0]["field"] == "after"


async def test_a_file_of_csv_or_of_json_lines(region):
    a = await region.start("a", **QUICK)
    client = BatchClient(region, a)

    async def upload(name, text, status=200, **fields):
        form = aiohttp.FormData()
        for key, value in fields.items():
            form.add_field(key, value)
        form.add_field("file", text, filename=name, content_type="application/octet-stream")
        return await client.ask("POST", "/v1/batches", data=form, status=status)

    table = 'custom_id,product,seed\na,cup,7\nb,"big\nlamp",\n'
    made = await upload(
        "rows.csv",
        table,
        template="a {product} spins",
        defaults='{"num_inference_steps": 3}',
    )
    await client.until_ended(made["id"])
    items = await client.items(made["id"])
    assert [item["prompt"] for item in items] == ["a cup spins", "a big\nlamp spins"]
    record = await region.record(items[0]["video_id"])
    assert (record.video.spec.seed, record.video.spec.steps) == (7, 3)
    made = await upload("rows.jsonl", '{"prompt": "one"}\n\n{"prompt": "two", "seed": 5}\n')
    await client.until_ended(made["id"])
    assert [item["prompt"] for item in await client.items(made["id"])] == ["one", "two"]
    problem = await upload("rows.csv", "product,sed\ncup,7\n", 400, template="a {product}")
    assert problem["errors"][0]["field"] == "file line 2.sed"
    assert "seed" in problem["errors"][0]["nearest"]
