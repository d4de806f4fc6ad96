"""Remixing: what is taken of the original, and what is not."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import video_pb2

from gateway.validation.remix import remixed
from gateway.validation.request import Catalog, resolve
from tests.support.fakenode import MODEL

ORIGINAL = video_pb2.ResolvedSpec(
    prompt="a red ball",
    negative_prompt="",
    model="fake-wan",
    model_version="0.9",
    width=128,
    height=96,
    num_frames=9,
    fps=8,
    steps=3,
    unloaded_steps=6,
    guidance_scale=0,
    flow_shift=4,
    seed=0,
    requested_resolution="480p",
    requested_seconds=1.0,
    quality="auto",
)
CATALOG = Catalog((MODEL,), MODEL.name)
WISHES = {
    "negative_prompt": st.sampled_from(["", "grey"]),
    "steps": st.integers(1, 50),
    "guidance_scale": st.floats(0, 20),
    "flow_shift": st.floats(0.1, 20),
    "seed": st.integers(0, 2**63 - 1),
}


def resolved(spec, unfit=None):
    return resolve(spec, CATALOG, drawn_seed=77)


def test_all_settings_are_the_originals_but_prompt_version_and_what_load_took():
    made = resolved(remixed(video_pb2.VideoSpec(prompt="a blue ball"), ORIGINAL, {}))
    expected = video_pb2.ResolvedSpec()
    expected.CopyFrom(ORIGINAL)
    expected.prompt = "a blue ball"
    expected.model_version = MODEL.version
    expected.steps = 6
    expected.unloaded_steps = 0
    # Nobody asked for them by these names now.
    expected.requested_resolution = ""
    expected.ClearField("requested_seconds")
    assert made == expected


@given(st.fixed_dictionaries({}, optional=WISHES))
def test_what_is_asked_for_replaces_that_setting_alone(wishes):
    made = resolved(remixed(video_pb2.VideoSpec(prompt="x", **wishes), ORIGINAL, {}))
    plain = resolved(remixed(video_pb2.VideoSpec(prompt="x"), ORIGINAL, {}))
    for name in WISHES:
        assert getattr(made, name) == wishes.get(name, getattr(plain, name))
    assert (made.width, made.num_frames, made.quality) == (128, 9, "auto")


def test_a_size_or_length_by_name_replaces_the_originals_numbers():
    spec = video_pb2.VideoSpec(prompt="x", resolution="96x64", seconds=2)
    made = resolved(remixed(spec, ORIGINAL, {}))
    assert (made.width, made.height, made.num_frames) == (96, 64, 17)


def test_a_number_that_no_field_holds_is_not_covered_by_the_originals():
    unfit = {"seed": -1, "num_frames": -1, "width": -1}
    merged = remixed(video_pb2.VideoSpec(prompt="x"), ORIGINAL, unfit)
    assert not any(merged.HasField(name) for name in ("seed", "num_frames", "width", "height"))


def test_the_request_stays_as_it_was():
    spec = video_pb2.VideoSpec(prompt="x")
    remixed(spec, ORIGINAL, {})
    assert spec == video_pb2.VideoSpec(prompt="x")
