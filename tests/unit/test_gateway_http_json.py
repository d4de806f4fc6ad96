"""Messages as JSON: numbers are numbers, enums are words, what is not finite is null."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import fleet_service_pb2, model_pb2, video_pb2

from gateway.edge_http.json_values import dumps, to_json
from gateway.edge_http.openai_objects import model_list, model_object, video_object
from gateway.errors import ModelNotFound


def test_large_integers_are_numbers_and_absent_messages_are_left_out():
    event = video_pb2.CompletedEvent(seed=2**63 - 1, size_bytes=5)
    found = to_json(event)
    assert found["seed"] == 2**63 - 1
    assert "timings" not in found
    event.timings.total_s = 1.5
    assert to_json(event)["timings"]["total_s"] == 1.5


def test_enums_are_lower_case_words_without_their_type():
    region = fleet_service_pb2.Region(state=fleet_service_pb2.REGION_STATE_NOT_SERVING)
    assert to_json(region)["state"] == "not_serving"
    progress = video_pb2.ProgressEvent(stage=video_pb2.STAGE_ENCODE_TEXT)
    assert to_json(progress)["stage"] == "encode_text"


def test_an_enum_value_of_a_newer_peer_is_its_number():
    newer = fleet_service_pb2.Region.FromString(b"\x10\x63")
    assert to_json(newer)["state"] == "99"


def test_what_is_not_finite_is_null():
    assert to_json(video_pb2.ProgressEvent(eta_s=math.nan))["eta_s"] is None
    assert to_json(video_pb2.ProgressEvent(eta_s=math.inf))["eta_s"] is None


@given(
    st.text(),
    st.floats(),
    st.integers(0, 2**64 - 1),
    st.sampled_from(sorted(video_pb2.VideoStatus.values())),
)
def test_any_video_is_valid_json(prompt, fps, seed, status):
    video = video_pb2.Video(id="ap-x", status=status)
    video.spec.prompt, video.spec.fps, video.spec.seed = prompt, fps, seed
    found = json.loads(dumps(video_object(video)), parse_constant=None)
    assert found["prompt"] == prompt
    assert found["seed"] == seed
    assert found["status"] in {"queued", "in_progress", "completed", "failed"}


def test_seconds_are_what_the_frames_last():
    spec = video_pb2.ResolvedSpec(num_frames=121, fps=24)
    assert video_object(video_pb2.Video(spec=spec))["seconds"] == "5"
    spec.num_frames = 17
    assert video_object(video_pb2.Video(spec=spec))["seconds"] == "0.667"


def test_two_versions_of_a_model_are_listed_by_their_pinned_ids():
    models = [
        model_pb2.ModelInfo(name="wan", version="1"),
        model_pb2.ModelInfo(name="wan", version="2"),
        model_pb2.ModelInfo(name="other", version="1"),
    ]
    listed = model_list(models, default="wan")["data"]
    assert [model["id"] for model in listed] == ["wan@1", "wan@2", "other"]
    assert [model["default"] for model in listed] == [True, True, False]


def test_a_model_is_found_by_name_and_by_its_pinned_id():
    models = [model_pb2.ModelInfo(name="wan", version=version) for version in ("2", "1")]
    by_name = model_object("wan", models, default="wan")
    assert (by_name["id"], by_name["pinned_id"]) == ("wan", "wan@2")
    pinned = model_object("wan@1", models, default="wan")
    assert (pinned["id"], pinned["version"]) == ("wan@1", "1")
    for wanted in ("wan@3", "wa", "@1", ""):
        with pytest.raises(ModelNotFound, match=r"serves wan$"):
            model_object(wanted, models, default="wan")
