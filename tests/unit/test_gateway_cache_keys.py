"""Which requests ask for the same video, and who may be answered by whose."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import tenant_pb2, video_pb2

from gateway.cache.keys import normalised, video_key
from gateway.cache.permission import COMMON, may_use, shelf_of, shelves

TENANT = tenant_pb2.CACHE_SHARING_TENANT
SHARED = tenant_pb2.CACHE_SHARING_SHARED
OFF = tenant_pb2.CACHE_SHARING_OFF
UNSET = tenant_pb2.CACHE_SHARING_UNSPECIFIED
POLICIES = (UNSET, TENANT, SHARED, OFF)


def policy(sharing):
    return tenant_pb2.TenantPolicy(cache_sharing=sharing)


def spec(**changes):
    fields = {
        "prompt": "a ball",
        "negative_prompt": "blurry",
        "model": "wan",
        "model_version": "1",
        "width": 96,
        "height": 64,
        "num_frames": 17,
        "fps": 8,
        "steps": 4,
        "guidance_scale": 5,
        "flow_shift": 5,
        "seed": 7,
    }
    return video_pb2.ResolvedSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "a Ball"),
        ("negative_prompt", ""),
        ("model", "wan-2"),
        ("model_version", "2"),
        ("width", 128),
        ("height", 96),
        ("num_frames", 21),
        ("fps", 16),
        ("steps", 5),
        ("guidance_scale", 4.5),
        ("flow_shift", 3),
    ],
)
def test_what_changes_the_video_changes_the_key(field, value):
    for seeded in (True, False):
        assert video_key(spec(), seeded=seeded) != video_key(spec(**{field: value}), seeded=seeded)


def test_every_field_of_a_request_counts_or_is_known_not_to():
    counts = {
        "prompt", "negative_prompt", "model", "model_version", "width", "height", "num_frames",
        "fps", "steps", "guidance_scale", "flow_shift", "seed",
    }  # fmt: skip
    idle = {"requested_resolution", "requested_seconds", "quality", "unloaded_steps"}
    assert counts | idle == set(video_pb2.ResolvedSpec.DESCRIPTOR.fields_by_name)


def test_a_seed_counts_where_it_was_asked_for():
    assert video_key(spec(), seeded=False) == video_key(spec(seed=8), seeded=False)
    assert video_key(spec(), seeded=True) != video_key(spec(seed=8), seeded=True)
    assert video_key(spec(seed=0), seeded=True) != video_key(spec(seed=0), seeded=False)


def test_how_a_choice_was_come_by_does_not_count():
    wished = spec(
        requested_resolution="480p", requested_seconds=2.0, quality="auto", unloaded_steps=50
    )
    assert video_key(wished, seeded=True) == video_key(spec(), seeded=True)
    # As resolved: a video that load made worse answers nobody who asks for all its steps.
    assert video_key(spec(steps=2, unloaded_steps=4), seeded=False) != video_key(
        spec(), seeded=False
    )


@given(st.text(max_size=60), st.sampled_from(["NFC", "NFD"]), st.sampled_from([" ", "\t", "\n  "]))
def test_blanks_and_forms_of_a_character_make_no_other_prompt(text, form, blank):
    written = unicodedata.normalize(form, blank + text.replace(" ", blank + " ") + blank)
    assert normalised(written) == normalised(unicodedata.normalize("NFC", text))
    assert normalised(normalised(text)) == normalised(text)


def test_case_is_kept():
    assert normalised("  A  Ball\n") == "A Ball"


@given(st.sampled_from(POLICIES), st.sampled_from(POLICIES))
def test_two_tenants_share_only_where_both_say_so(mine, others):
    allowed = may_use("acme", policy(mine), "globex", policy(others))
    assert allowed == (mine == others == SHARED)
    meet = set(shelves("acme", policy(mine))) & {shelf_of("globex", policy(others))}
    assert bool(meet) == allowed


@given(st.sampled_from(POLICIES))
def test_a_tenant_without_a_cache_neither_reads_nor_feeds(sharing):
    found = shelves("acme", policy(sharing))
    assert (shelf_of("acme", policy(sharing)) is None) == (not found) == (sharing == OFF)
    assert may_use("acme", policy(sharing), "acme", policy(sharing)) == (sharing != OFF)


def test_one_that_shared_still_finds_what_it_made_before():
    assert shelves("acme", policy(SHARED)) == ("acme", COMMON)
