"""``reelmesh batch`` as a process, against a gateway that serves made-up videos."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from reelmesh.v1 import tenant_pb2

from tests.support.fakegateway import TOKEN, FakeGateway


@pytest.fixture
def gateway():
    served = FakeGateway("ap")
    yield served
    served.stop()


@pytest.fixture
def start(gateway, tmp_path):
    """Starts a batch over these prompts."""

    def start(prompts: str, *arguments: str, token: str = TOKEN) -> subprocess.Popen[str]:
        (tmp_path / "prompts.txt").write_text(prompts, encoding="utf-8")
        command = [sys.executable, "-m", "reelmesh_cli", "batch", "prompts.txt", "--out", "out"]
        return subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "REELMESH_ENDPOINTS": gateway.endpoint, "REELMESH_TOKEN": token},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def rows(tmp_path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_makes_only_what_is_new(start, gateway, tmp_path):
    first = start("a\nb\n")
    assert "2 made, 0 finished before, 0 failed" in first.communicate(timeout=60)[0]
    assert first.returncode == 0
    second = start("b\nc\na\n")
    assert "1 made, 2 finished before, 0 failed" in second.communicate(timeout=60)[0]
    assert [row["prompt"] for row in rows(tmp_path)] == ["b", "c", "a"]
    assert sorted(spec.prompt for spec in gateway.specs) == ["a", "b", "c"]
    assert {each.priority for each in gateway.batches.submitted} == {tenant_pb2.PRIORITY_BATCH}
    for row in rows(tmp_path):
        assert (tmp_path / "out" / row["file"]).read_bytes() == gateway.mp4
    third = start("a\n", "--no-resume")
    assert "1 made, 0 finished before" in third.communicate(timeout=60)[0]


def until(condition, timeout_s=30):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_ctrl_c_leaves_the_batch_to_the_mesh_and_the_next_run_goes_on_with_it(
    start, gateway, tmp_path
):
    gateway.batches.held = 2
    process = start("a\nb\nc\nd\n", "--concurrency", "3")
    until(lambda: (tmp_path / "out" / "results.csv").exists() and len(rows(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    (request,) = gateway.batches.submitted
    assert request.max_in_flight == 3
    assert "interrupted: 2 made, 0 finished before, 0 failed, 2 left; the batch batch_ap-" in errors
    assert "run the same command again" in errors
    assert gateway.batches.cancelled == []
    gateway.batches.held = None
    second = start("a\nb\nc\nd\n")
    assert "2 made, 2 finished before, 0 failed" in second.communicate(timeout=60)[0]
    assert len(gateway.batches.submitted) == 1, "the same batch was to go on"
    assert [row["status"] for row in rows(tmp_path)] == ["completed"] * 4
    assert not (tmp_path / "out" / "batch.json").exists()


def test_a_submission_without_an_answer_is_not_made_twice(start, gateway, tmp_path):
    gateway.batches.held = 0
    process = start("a\nb\n")
    until(lambda: gateway.batches.submitted and (tmp_path / "out" / "batch.json").exists())
    process.kill()
    process.communicate()
    state = tmp_path / "out" / "batch.json"
    noted = json.loads(state.read_text())
    state.write_text(json.dumps({**noted, "batch_id": ""}))
    gateway.batches.held = None
    second = start("a\nb\n")
    assert "2 made, 0 finished before" in second.communicate(timeout=60)[0]
    assert len(gateway.batches.submitted) == 1


def test_a_batch_is_cancelled_on_demand(start, gateway, tmp_path):
    gateway.batches.held = 1
    process = start("a\nb\nc\n")
    until(lambda: (tmp_path / "out" / "results.csv").exists() and len(rows(tmp_path)) == 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    cancel = start("a\nb\nc\n", "--cancel")
    out, _ = cancel.communicate(timeout=60)
    assert "0 made, 1 finished before, 2 failed" in out
    assert len(gateway.batches.cancelled) == 1
    assert [row["code"] for row in rows(tmp_path)] == ["", "cancelled", "cancelled"]
    again = start("a\nb\nc\n", "--cancel")
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 2
    assert "no batch of it is under way" in errors


def test_rows_that_failed_are_tried_again_by_the_next_run(start, gateway, tmp_path):
    gateway.batches.fail = {"b"}
    first = start("a\nb\n")
    assert "1 made, 0 finished before, 1 failed" in first.communicate(timeout=60)[0]
    assert first.returncode == 1
    assert [row["code"] for row in rows(tmp_path)] == ["", "poison"]
    gateway.batches.fail = set()
    second = start("a\nb\n")
    assert "1 made, 1 finished before, 0 failed" in second.communicate(timeout=60)[0]


def test_rows_that_the_mesh_cannot_make_are_named_by_their_lines(start, gateway, tmp_path):
    gateway.batches.refuse = [("rows[1].num_frames", "16 is not allowed")]
    process = start("# a comment\na\nb\n")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "line 3, num_frames: 16 is not allowed" in errors
    assert gateway.specs == []
    assert not (tmp_path / "out" / "batch.json").exists()


def test_ctrl_c_says_what_became_of_a_single_video(gateway, tmp_path):
    gateway.trouble.hang = True
    process = subprocess.Popen(
        [sys.executable, "-m", "reelmesh_cli", "generate", "a", "-o", "a.mp4"],
        env={**os.environ, "REELMESH_ENDPOINTS": gateway.endpoint, "REELMESH_TOKEN": TOKEN},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 30
    while not gateway.specs:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: the video is cancelled and nothing was saved" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_bad_token_stops_the_batch_at_once(start, gateway, tmp_path):
    process = start("a\nb\nc\n", token="bad")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "token" in errors
    assert "Traceback" not in errors
    assert rows(tmp_path) == []


def test_heavy_and_forbidden_modules_stay_out():
    """The client library and the command start fast and install small."""
    code = (
        "import sys, reelmesh_cli.app, wan_t2v_sdk; "
        "heavy = {'torch', 'diffusers', 'aiohttp', 'pydantic', 'structlog', 'opentelemetry'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")
