"""Event log, work estimates, settings and errors of the node agent."""

from __future__ import annotations

import asyncio
import inspect
import socket

import grpc
import pytest
from google.rpc import error_details_pb2
from reelmesh.v1 import video_pb2
from reelmesh.v1.node_service_pb2 import NodeEvent, RunResponse

from node_agent import errors
from node_agent.config import ENV_PREFIX, NodeConfig
from node_agent.event_log import EventLog
from node_agent.work import Speed, progress_fraction, work_units
from reelkit.settings import ConfigError, load_settings
from reelkit.tasks import TaskScope

# --- event log ---


def chunk(data: bytes) -> NodeEvent:
    return NodeEvent(chunk=video_pb2.ChunkEvent(data=data))


def test_events_are_numbered_and_kept_as_they_are_sent():
    log = EventLog()
    log.append(chunk(b"a"))
    log.append(chunk(b"b"))
    events = [RunResponse.FromString(frame).event for frame in log.frames_after(0)]
    assert [(event.n, event.chunk.data) for event in events] == [(1, b"a"), (2, b"b")]
    assert log.frames_after(1) == log.frames_after(0)[1:]
    assert log.frames_after(7) == []
    assert log.size_bytes == sum(map(len, log.frames_after(0)))


def test_readers_share_the_very_same_bytes():
    log = EventLog()
    log.append(chunk(b"x" * 1000))
    assert log.frames_after(0)[0] is log.frames_after(0)[0]


def test_nothing_follows_a_terminal_event():
    log = EventLog()
    assert log.append(NodeEvent(completed=video_pb2.CompletedEvent()))
    assert log.ended
    assert not log.append(chunk(b"late"))
    assert log.last_n == 1


async def test_every_waiting_reader_is_woken_and_a_cancelled_one_harms_none():
    log = EventLog()
    async with TaskScope("test") as scope:
        waiting = [scope.spawn(log.changed(), name="reader") for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        log.append(chunk(b"x"))
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting[1:])


# --- work ---


def test_work_units_are_pixels_of_all_steps():
    spec = video_pb2.ResolvedSpec(width=832, height=480, num_frames=121, steps=25)
    assert work_units(spec) == pytest.approx(832 * 480 * 121 * 25 / 1e6)


def test_progress_never_reaches_one_before_decoding_is_done():
    def at(stage, step):
        return progress_fraction(video_pb2.ProgressEvent(stage=stage, step=step, total_steps=10))

    assert at(video_pb2.STAGE_ENCODE_TEXT, 1) == 0.0
    assert at(video_pb2.STAGE_DENOISE, 5) == pytest.approx(0.45)
    assert at(video_pb2.STAGE_DENOISE, 10) < at(video_pb2.STAGE_DECODE, 5) < 1.0
    assert at(video_pb2.STAGE_DECODE, 10) == pytest.approx(1.0)
    assert progress_fraction(video_pb2.ProgressEvent(stage=video_pb2.STAGE_DENOISE)) == 0.0


def test_speed_begins_with_the_warm_up_and_follows_real_runs():
    speed = Speed()
    assert speed.seconds(10) == 0.0
    speed.seed(1.0)
    speed.observe(units=30.0, device_s=10.0)
    assert speed.units_per_second == pytest.approx(2.0)
    speed.seed(1.0)
    for _ in range(30):
        speed.observe(units=30.0, device_s=10.0)
    assert speed.units_per_second == pytest.approx(3.0, rel=0.01)
    assert speed.seconds(30) == pytest.approx(10, rel=0.01)


def test_speed_without_a_warm_up_takes_the_first_run_whole():
    speed = Speed()
    speed.observe(units=30.0, device_s=10.0)
    assert speed.units_per_second == 3.0
    speed.observe(units=0.0, device_s=10.0)
    speed.observe(units=30.0, device_s=0.0)
    assert speed.units_per_second == 3.0


def test_the_median_step_ignores_a_straggler():
    speed = Speed()
    for step_s in (0.1, 0.1, 50.0):
        speed.observe_step(step_s)
    assert speed.median_step_s() == 0.1


# --- settings ---

MINIMAL = {"node_id": "ap-node-0", "region": "ap", "model": {"source": "models/demo"}}


def test_few_settings_are_needed():
    config = NodeConfig.model_validate(MINIMAL)
    assert config.workers.devices == ("cpu",)
    assert config.runs.limits().owner_grace_s == 30.0
    assert config.workers.heartbeat_timeout_s == 2.0


def test_every_wrong_field_is_named_at_once(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("node_id: Not OK\nregion: ap\nlisten: nowhere\nmodle: {source: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(NodeConfig, file=file, env_prefix=ENV_PREFIX, environ={})
    for field in ("node_id", "listen", "modle", "model"):
        assert field in str(caught.value)


def test_the_environment_overrides_the_file(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("node_id: a\nregion: ap\nmodel: {source: x}\n")
    environ = {"REELMESH_NODE__WORKERS__THREADS": "3", "REELMESH_NODE__NODE_ID": "b"}
    config = load_settings(NodeConfig, file=file, env_prefix=ENV_PREFIX, environ=environ)
    assert (config.node_id, config.workers.threads) == ("b", 3)


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({"listen": "127.0.0.1:0"}, "127.0.0.1:4711"),
        ({"advertise": "node.example:9000"}, "node.example:9000"),
        ({"advertise": "node.example:0"}, "node.example:4711"),
    ],
)
def test_the_advertised_address_has_the_port_in_use(changes, address):
    assert NodeConfig.model_validate({**MINIMAL, **changes}).advertised(4711) == address


def test_an_unspecified_address_is_never_advertised():
    config = NodeConfig.model_validate({**MINIMAL, "listen": "0.0.0.0:0", "allow_plaintext": True})
    assert config.advertised(4711) == f"{socket.gethostname()}:4711"


def test_the_worker_beats_four_times_within_the_patience():
    config = NodeConfig.model_validate({**MINIMAL, "workers": {"heartbeat_timeout_s": 4.0}})
    assert config.worker_settings().heartbeat_s == 1.0


# --- errors ---


def leaves(of: type[Exception]) -> list[type[Exception]]:
    below = of.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [of]


def test_every_error_has_a_code_of_its_own_and_stands_in_the_tree():
    classes = leaves(errors.NodeError)
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    for cls in classes:
        assert cls.__name__ in (inspect.getdoc(errors) or "")


def test_every_call_error_has_a_status_with_its_reason():
    made = {
        errors.InvalidRunError: errors.InvalidRunError("spec.steps", "must be 1 or more"),
        errors.ModelNotLoadedError: errors.ModelNotLoadedError("x"),
        errors.StaleOwnerError: errors.StaleOwnerError("x"),
    }
    for cls in leaves(errors.CallError):
        status = errors.to_status(made[cls])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason.isupper()
        assert info.domain == errors.ERROR_DOMAIN
        assert status.code in {code.value[0] for code in grpc.StatusCode}
        assert status.message == str(made[cls])
