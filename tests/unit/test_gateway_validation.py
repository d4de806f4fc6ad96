"""Requests against a model's rules: every violation, with the nearest valid values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import model_pb2, video_pb2, video_service_pb2

from gateway.application import ALL_FIT
from gateway.errors import InvalidRequest
from gateway.validation.fields import check_options, nearest_counts
from gateway.validation.request import MAX_SEED, Catalog, resolve
from tests.support.fakenode import MODEL

SECOND = model_pb2.ModelInfo()
SECOND.CopyFrom(MODEL)
SECOND.version = "0"
CATALOG = Catalog(models=(MODEL, SECOND), default_model=MODEL.name)


def resolved(**fields):
    return resolve(video_pb2.VideoSpec(**{"prompt": "a ball", **fields}), CATALOG, drawn_seed=42)


def violations(*, unfit=ALL_FIT, **fields):
    spec = video_pb2.VideoSpec(**{"prompt": "a ball", **fields})
    with pytest.raises(InvalidRequest) as raised:
        resolve(spec, CATALOG, drawn_seed=42, unfit=unfit)
    return {violation.field: violation for violation in raised.value.violations}


def test_unset_fields_take_the_models_defaults():
    spec = resolved()
    assert (spec.model, spec.model_version) == (MODEL.name, "1")
    assert (spec.width, spec.height, spec.num_frames, spec.fps) == (96, 64, 17, 8)
    assert (spec.steps, spec.guidance_scale, spec.flow_shift) == (4, 5, 5)
    assert spec.negative_prompt == "blurry"
    assert spec.seed == 42
    assert not spec.requested_resolution
    assert not spec.HasField("requested_seconds")


def test_what_is_given_is_taken_as_it_is():
    spec = resolved(
        negative_prompt="",
        model="fake-wan@0",
        width=128,
        height=96,
        num_frames=5,
        fps=8,
        steps=1,
        guidance_scale=0,
        flow_shift=20,
        seed=MAX_SEED,
    )
    assert spec.model_version == "0"
    assert spec.negative_prompt == ""
    assert (spec.width, spec.height, spec.num_frames) == (128, 96, 5)
    assert (spec.steps, spec.guidance_scale, spec.flow_shift) == (1, 0, 20)
    assert spec.seed == MAX_SEED


def test_names_and_seconds_resolve_and_are_echoed():
    spec = resolved(resolution="480p", seconds=6)
    assert (spec.width, spec.height) == (128, 96)
    assert spec.num_frames == 49
    assert (spec.requested_resolution, spec.requested_seconds) == ("480p", 6)
    by_size = resolved(resolution="96x64")
    assert (by_size.width, by_size.height, by_size.requested_resolution) == (96, 64, "96x64")


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.5, 5), (1, 9), (1.2, 9), (1.25, 9), (1.3, 13), (2, 17), (6, 49)]
)
def test_seconds_become_the_nearest_duration(seconds, frames):
    assert resolved(seconds=seconds).num_frames == frames


@pytest.mark.parametrize(
    ("fields", "field", "nearest"),
    [
        ({"prompt": ""}, "prompt", ()),
        ({"prompt": " \t\n　"}, "prompt", ()),
        ({"prompt": "x" * 2001}, "prompt", ()),
        ({"prompt": "a\x00b"}, "prompt", ()),
        ({"prompt": "a\x1bb"}, "prompt", ()),
        ({"prompt": "a\x85b"}, "prompt", ()),
        ({"negative_prompt": "x" * 2001}, "negative_prompt", ()),
        ({"negative_prompt": "\x7f"}, "negative_prompt", ()),
        ({"model": "fake-wann"}, "model", ("fake-wan",)),
        ({"model": "fake-wan@7"}, "model", ("fake-wan@1", "fake-wan@0")),
        ({"resolution": "481p"}, "resolution", ("480p",)),
        ({"resolution": "100x100"}, "resolution", ("128x96", "96x64", "480p")),
        ({"resolution": "90x60"}, "resolution", ("96x64", "128x96", "480p")),
        ({"resolution": "1280 × 720"}, "resolution", ("128x96", "96x64", "480p")),
        ({"resolution": "9" * 40 + "x1"}, "resolution", ("128x96", "96x64", "480p")),
        ({"resolution": "480p", "width": 128, "height": 96}, "resolution", ()),
        ({"width": 128}, "height", ()),
        ({"height": 96}, "width", ()),
        ({"width": 100, "height": 64}, "width", ("96x64", "128x96")),
        ({"width": 96, "height": 65}, "height", ("96x64", "128x96")),
        ({"width": 96, "height": 96}, "height", ("96x64", "128x96")),
        ({"width": 0, "height": 0}, "width", ("96x64", "128x96")),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "width", ("128x96", "96x64")),
        ({"num_frames": 16}, "num_frames", ("17", "13")),
        ({"num_frames": 0}, "num_frames", ("5", "9")),
        ({"num_frames": 1}, "num_frames", ("5", "9")),
        ({"num_frames": 2**32 - 1}, "num_frames", ("49",)),
        ({"num_frames": 9, "seconds": 1}, "seconds", ()),
        ({"seconds": 0.4}, "seconds", ("0.5",)),
        ({"seconds": 1e12}, "seconds", ("6",)),
        ({"seconds": math.nan}, "seconds", ()),
        ({"fps": 24}, "fps", ("8",)),
        ({"fps": math.nan}, "fps", ("8",)),
        ({"steps": 0}, "steps", ("1",)),
        ({"steps": 10**9}, "steps", ("50",)),
        ({"guidance_scale": math.nan}, "guidance_scale", ()),
        ({"guidance_scale": math.inf}, "guidance_scale", ()),
        ({"guidance_scale": -1}, "guidance_scale", ("0",)),
        ({"flow_shift": 0}, "flow_shift", ("0.1",)),
        ({"flow_shift": -math.inf}, "flow_shift", ()),
        ({"seed": 2**63}, "seed", (str(2**63 - 1),)),
    ],
)
def test_each_broken_rule_names_its_field_and_the_nearest(fields, field, nearest):
    found = violations(**fields)
    assert list(found) == [field]
    assert found[field].nearest == nearest
    assert found[field].message


@pytest.mark.parametrize(
    ("unfit", "fields", "field", "nearest"),
    [
        ({"num_frames": -1}, {}, "num_frames", ("5", "9")),
        ({"num_frames": 10**400}, {}, "num_frames", ("49",)),
        ({"num_frames": -1}, {"seconds": 1}, "seconds", ()),
        ({"steps": -1}, {}, "steps", ("1",)),
        ({"steps": 2**32}, {}, "steps", ("50",)),
        ({"seed": -1}, {}, "seed", ("0",)),
        ({"seed": 2**64}, {}, "seed", (str(MAX_SEED),)),
        ({"width": -1}, {"height": 96}, "width", ("96x64", "128x96")),
        ({"height": -1}, {"width": 128}, "height", ("96x64", "128x96")),
        ({"width": -1, "height": 10**400}, {}, "width", ("128x96", "96x64")),
        ({"width": -1}, {"resolution": "480p", "height": 1}, "resolution", ()),
    ],
)
def test_a_number_that_no_field_holds_breaks_the_models_rule(unfit, fields, field, nearest):
    found = violations(unfit=unfit, **fields)
    assert list(found) == [field]
    assert found[field].nearest == nearest
    assert "4294967295" not in found[field].message
    assert len(found[field].message) < 200


def test_one_side_that_no_field_holds_is_named_beside_the_missing_one():
    found = violations(unfit={"width": -5})
    assert list(found) == ["width", "height"]
    assert found["width"].nearest == ("96", "128")


def test_a_number_that_no_field_holds_is_refused_of_an_unknown_model_too():
    unfit = {"num_frames": -1, "width": -1, "height": 4, "steps": -1, "seed": -1}
    found = violations(unfit=unfit, model="nope")
    assert set(found) == {"model", "num_frames", "width", "steps", "seed"}


def test_the_message_of_a_size_reads_whole():
    with pytest.raises(InvalidRequest) as raised:
        resolved(width=130, height=97)
    assert str(raised.value) == (
        "width: 130x97 is not a size of fake-wan (sizes are never rounded); "
        "the nearest are 128x96, 96x64"
    )


def test_an_alias_that_is_unknown_is_quoted_short():
    assert len(violations(model="x" * 30_000)["model"].message) < 200
    assert len(violations(resolution="x" * 30_000)["resolution"].message) < 200


def test_all_broken_rules_are_told_at_once():
    found = violations(
        prompt="",
        model="nope",
        width=1,
        num_frames=2,
        steps=0,
        guidance_scale=math.nan,
        seconds=math.inf,
    )
    # Without a model there are no sizes and frame rules to hold against; the rest is told.
    assert {"prompt", "model", "height", "steps", "guidance_scale", "seconds"} <= set(found)
    known = violations(prompt="\x00", num_frames=2, steps=0, fps=1, seed=2**64 - 1, width=1)
    assert set(known) == {"prompt", "num_frames", "steps", "fps", "seed", "height"}


def test_no_message_quotes_the_prompt():
    secret = "the secret words\x00"
    with pytest.raises(InvalidRequest) as raised:
        resolved(prompt=secret, negative_prompt=secret, steps=0)
    assert "secret" not in str(raised.value)


@given(count=st.integers(0, 2**32 - 1))
def test_the_nearest_counts_are_valid_and_nearest(count):
    valid = list(range(MODEL.frames.min, MODEL.frames.max + 1, MODEL.frames.step))
    found = nearest_counts(count, MODEL.frames)
    assert set(found) <= set(valid)
    assert abs(found[0] - count) == min(abs(v - count) for v in valid)


@given(
    spec=st.builds(
        video_pb2.VideoSpec,
        prompt=st.text(max_size=30),
        resolution=st.sampled_from(["", "480p", "x"]),
        width=st.none() | st.integers(0, 200),
        height=st.none() | st.integers(0, 200),
        num_frames=st.none() | st.integers(0, 60),
        seconds=st.none() | st.floats(),
        fps=st.none() | st.floats(),
        steps=st.none() | st.integers(0, 60),
        guidance_scale=st.none() | st.floats(),
        flow_shift=st.none() | st.floats(),
        seed=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_what_passes_is_what_the_model_can_do(spec):
    try:
        found = resolve(spec, CATALOG, drawn_seed=1)
    except InvalidRequest:
        return
    assert (found.width, found.height) in {(s.width_px, s.height_px) for s in MODEL.sizes}
    assert found.num_frames in range(5, 50, 4)
    assert 1 <= found.steps <= 50
    assert 0 <= found.guidance_scale <= 20
    assert 0.1 <= found.flow_shift <= 20
    assert found.fps == 8
    assert 0 <= found.seed <= MAX_SEED
    for name in ("width", "height", "num_frames", "steps", "seed"):
        if spec.HasField(name):
            assert getattr(found, name) == getattr(spec, name)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"idempotency_key": " "}, "idempotency_key"),
        ({"idempotency_key": "a b"}, "idempotency_key"),
        ({"idempotency_key": "é"}, "idempotency_key"),
        ({"idempotency_key": "k" * 129}, "idempotency_key"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"supersedes": "x"}, "supersedes"),
    ],
)
def test_options_have_rules_too(options, field):
    found = check_options(video_service_pb2.CreateOptions(**options))
    assert [violation.field for violation in found] == [field]


def test_good_options_pass():
    options = video_service_pb2.CreateOptions(
        idempotency_key="k" * 128,
        deadline_s=0.5,
        supersedes="eu-01jd3x8z5q0e8m2c4r6t7v9wxy",
    )
    assert check_options(options) == []
