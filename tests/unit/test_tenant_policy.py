"""A policy that means nothing is refused; what reelctl makes of its options."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import tenant_pb2

from control_plane.errors import InvalidRequestError
from control_plane.reelctl.errors import UsageError
from control_plane.reelctl.limits import (
    FIELDS,
    changed,
    clear_fields,
    limits_of,
    parse_size,
    plain_policy,
)
from control_plane.tenants.policy import check_policy


def policy(**fields):
    return tenant_pb2.TenantPolicy(**{"tenant": "acme", **fields})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a\nb"}, "tenant"),
        ({"tenant": "x" * 129}, "tenant"),
        ({"requests_per_second": 0.0}, "requests_per_second"),
        ({"requests_per_second": math.nan}, "requests_per_second"),
        ({"requests_per_second": math.inf}, "requests_per_second"),
        ({"burst": 5}, "burst"),
        ({"requests_per_second": 1.0, "burst": 0}, "burst"),
        ({"gpu_seconds_per_day": -1.0}, "gpu_seconds_per_day"),
        ({"max_size": {"width_px": 64}}, "max_size.height_px"),
        ({"max_steps": 0}, "max_steps"),
        ({"models": ["a b"]}, "models"),
        ({"models": ["a@"]}, "models"),
        ({"models": ["m"] * 33}, "models"),
        ({"weight": 0.0}, "weight"),
        ({"min_steps_percent": 101}, "min_steps_percent"),
        ({"priority": 9}, "priority"),
        ({"cache_sharing": 9}, "cache_sharing"),
    ],
)
def test_what_means_nothing_is_refused_by_name(fields, named):
    with pytest.raises(InvalidRequestError) as raised:
        check_policy(policy(**fields))
    assert raised.value.field == named


def test_nothing_at_all_is_a_limit_too():
    check_policy(policy(concurrent_jobs=0, queued_jobs=0, gpu_seconds_per_day=0.0))
    check_policy(policy(requests_per_second=5.0, burst=1, models=["wan", "wan@v1"]))


numbers = {
    "requests_per_second": st.floats(0.1, 1e5),
    "burst": st.integers(1, 1000),
    "concurrent_jobs": st.integers(0, 1000),
    "max_steps": st.integers(1, 1000),
    "models": st.lists(st.sampled_from(["a", "b@v1"]), min_size=1),
    "priority": st.sampled_from([1, 2]),
}
wishes = st.fixed_dictionaries({}, optional=numbers)


@given(wishes, wishes, st.sets(st.sampled_from(sorted(numbers))))
def test_a_change_touches_what_it_names_and_nothing_else(standing, given_, cleared):
    cleared -= given_.keys()
    before = changed(policy(), standing, [])
    after = changed(before, given_, sorted(cleared))
    for field in FIELDS:
        value, then = limits_of(after)[field], limits_of(before)[field]
        if field in given_:
            assert value is not None
        else:
            assert value == (None if field in cleared else then)


def test_words_of_options_are_read():
    assert clear_fields(["queued-jobs", "--model", "max_size"]) == [
        "queued_jobs",
        "models",
        "max_size",
    ]
    with pytest.raises(UsageError, match="no limit 'wait'"):
        clear_fields(["wait"])
    assert parse_size("1280x704").width_px == 1280
    for wrong in ("", "1280", "1280*704", "0x5", "-1x5"):
        with pytest.raises(UsageError, match="no size"):
            parse_size(wrong)


def test_programs_are_told_what_is_limited_alone():
    made = policy(requests_per_second=5.0, priority=2, models=["m"], revision=7)
    assert plain_policy(made) == {
        "tenant": "acme",
        "requests_per_second": 5.0,
        "models": ["m"],
        "priority": "batch",
        "revision": 7,
    }
