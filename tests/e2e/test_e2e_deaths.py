"""What dies under a job, and what its client sees of it."""

import hashlib
import os
import shutil
import signal
import threading
import time

import psutil
import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from tests.support.mesh import RunningMesh, assert_gone, launch_up, running_mesh
from wan_t2v_sdk import TextToVideoGenerator

WORKER = "ap-node-0/worker-0"


def test_a_worker_killed_in_the_middle_still_ends_in_one_video(mesh: RunningMesh, ap, look):
    worker = mesh.pid(WORKER)
    spec = video_pb2.VideoSpec(prompt="a ball", width=160, height=96, num_frames=49, steps=50)
    call = ap.videos.GenerateVideo(
        video_service_pb2.GenerateVideoRequest(spec=spec), metadata=ap.metadata, timeout=90
    )
    data, attempts, killed, last = b"", set(), False, None
    for answer in call:
        event = answer.event
        kind = event.WhichOneof("event")
        if kind == "progress" and not killed:
            os.kill(worker, signal.SIGKILL)
            killed = True
        elif kind == "restarted":
            data = b""
        elif kind == "chunk":
            attempts.add(event.chunk.attempt)
            assert event.chunk.offset == len(data)
            data += event.chunk.data
        last = event
    assert killed
    assert last is not None
    if last.HasField("failed"):
        assert last.failed.retryable, last.failed
    else:
        assert last.completed.attempt == 2
        assert last.completed.sha256 == hashlib.sha256(data).hexdigest()
        assert len(look(data).frames) == 49
    # The agent lived on, and its new worker is listed.
    new = mesh.wait_for_new_pid(WORKER, worker)
    assert psutil.pid_exists(new)


def test_the_sdk_ends_with_a_whole_video_when_a_worker_dies(mesh: RunningMesh, look):
    worker = mesh.pid(WORKER)
    once = threading.Event()

    def on_progress(event):
        if event.kind == "progress" and not once.is_set():
            once.set()
            os.kill(worker, signal.SIGKILL)

    with TextToVideoGenerator.from_mesh(mesh.file, region="ap", timeout_s=90) as model:
        result = model.generate(
            "a ball", num_frames=49, steps=50, on_progress=on_progress, progress=False
        )
    assert result["attempts"] == 2
    assert len(look(result["video"]).frames) == 49
    mesh.wait_for_new_pid(WORKER, worker)


def test_a_gateway_that_stands_still_is_passed_over(mesh: RunningMesh):
    gateway = mesh.pid("ap-gateway-0")
    os.kill(gateway, signal.SIGSTOP)
    try:
        with TextToVideoGenerator.from_mesh(mesh.file, timeout_s=60) as model:
            result = model.generate("a ball", num_frames=5, steps=2, progress=False)
    finally:
        os.kill(gateway, signal.SIGCONT)
    assert result["region"] == "eu"


@pytest.fixture(scope="module")
def killed_mesh(tmp_path_factory, random_model_dir):
    """The folder of a mesh whose ``reelmesh up`` was killed, and the processes it had."""
    state_dir = tmp_path_factory.mktemp("lone") / "state"
    with running_mesh(state_dir, "--regions", "home", "--model", str(random_model_dir)) as running:
        family = running.family()
        running.process.kill()
        running.process.wait(10)
    return state_dir, family


def test_nothing_is_left_when_up_itself_is_killed(killed_mesh):
    _, family = killed_mesh
    # etcd, control plane, gateway, agent, its fork server and worker, and up itself.
    assert len(family) >= 6
    assert_gone(family)


@pytest.fixture(scope="module")
def lone_mesh(killed_mesh, random_model_dir):
    """A mesh in the folder of one that was killed; it restarts what dies."""
    state_dir, _ = killed_mesh
    arguments = ("--regions", "home", "--restart", "--model", str(random_model_dir))
    with running_mesh(state_dir, *arguments) as running:
        yield running


def test_a_mesh_comes_up_again_where_one_was_killed(lone_mesh: RunningMesh):
    with TextToVideoGenerator.from_mesh(lone_mesh.file, timeout_s=60) as model:
        assert model.generate("x", num_frames=5, steps=2, progress=False)["region"] == "home"


def test_a_gateway_that_died_is_started_again_where_asked(lone_mesh: RunningMesh):
    gateway = lone_mesh.pid("home-gateway-0")
    os.kill(gateway, signal.SIGKILL)
    lone_mesh.wait_for_new_pid("home-gateway-0", gateway)
    with TextToVideoGenerator.from_mesh(lone_mesh.file, timeout_s=60) as model:
        # At the same address as before.
        assert model.generate("x", num_frames=5, steps=2, progress=False)["region"] == "home"


def test_a_state_dir_in_use_is_refused(lone_mesh: RunningMesh):
    second = launch_up(lone_mesh.state_dir, "--regions", "home")
    assert second.process.wait(30) == 1
    assert f"in use by a mesh that is up (pid {lone_mesh.process.pid})" in second.output.read_text()
    assert lone_mesh.file.exists()


@pytest.mark.parametrize("signals", [1, 2])
def test_nothing_is_left_when_up_is_interrupted_while_it_starts(
    tmp_path, random_model_dir, signals
):
    starting = launch_up(tmp_path / "state", "--regions", "home", "--model", str(random_model_dir))
    deadline_s = time.monotonic() + 60
    node_log = starting.state_dir / "logs" / "home-node-0.log"
    while not node_log.exists():
        assert starting.process.poll() is None, starting.said()
        assert time.monotonic() < deadline_s, starting.said()
        time.sleep(0.02)
    family = starting.family()
    for _ in range(signals):
        starting.process.send_signal(signal.SIGINT)
    assert starting.process.wait(30) == 128 + signal.SIGINT
    assert_gone(family)
    assert not starting.file.exists()
    assert "Traceback" not in starting.output.read_text()


def test_a_mesh_that_cannot_start_says_why_and_leaves_nothing(tmp_path, random_model_dir):
    broken = tmp_path / "model"
    shutil.copytree(random_model_dir, broken)
    weights = next(broken.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    failing = launch_up(tmp_path / "state", "--regions", "home", "--model", str(broken))
    assert failing.process.wait(60) == 1
    said = failing.output.read_text()
    assert "home-node-0 cannot serve" in said
    assert weights.name in said, "the file that is damaged is not named"
    assert not failing.file.exists()
