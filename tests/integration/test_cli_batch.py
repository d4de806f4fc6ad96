"""``reelmesh batch`` as a process, against a gateway that serves made-up videos."""

import csv
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
    assert {each.priority for each in gateway.options} == {tenant_pb2.PRIORITY_BATCH}
    for row in rows(tmp_path):
        assert (tmp_path / "out" / row["file"]).read_bytes() == gateway.mp4
    third = start("a\n", "--no-resume")
    assert "1 made, 0 finished before" in third.communicate(timeout=60)[0]


def test_ctrl_c_cancels_what_runs_and_keeps_what_is_done(start, gateway, tmp_path):
    gateway.trouble.hang = True
    process = start("a\nb\nc\nd\ne\n", "--concurrency", "3")
    deadline_s = time.monotonic() + 30
    # Each of the three says its last step and then hangs.
    while len(gateway.specs) < 3 or time.monotonic() < deadline_s - 29:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: 0 made, 0 finished before, 0 failed, 5 left" in errors
    assert "run the same command again" in errors
    assert len(gateway.specs) == 3, "more were asked for at once than allowed"
    assert len(gateway.cancelled) == 3
    assert rows(tmp_path) == []


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
