"""Fewer steps under load: in proportion, never below the floor, and for nobody who did not ask."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import model_pb2, tenant_pb2, video_pb2

from gateway.validation.brown_out import MAX_QUEUES, BrownOut, Waits, fewer_steps, least_steps

QUEUE = ("wan", "1", "acme")
WAITS = Waits(on_s=120.0, off_s=60.0, full_s=600.0)
STEPS = st.integers(1, 100)
LEVELS = st.floats(0, 1)
POLICIES = st.builds(
    tenant_pb2.TenantPolicy, min_steps_percent=st.none() | st.integers(0, 2**32 - 1)
)
INFOS = st.builds(
    model_pb2.ModelInfo,
    steps=st.builds(model_pb2.IntRange, min=st.integers(0, 120), max=st.just(200)),
)


def auto(steps):
    return video_pb2.ResolvedSpec(steps=steps, quality="auto")


@given(steps=STEPS, level=LEVELS, policy=POLICIES, info=INFOS)
def test_steps_stay_between_the_floor_and_what_was_asked_for(steps, level, policy, info):
    floor = least_steps(steps, policy, info)
    assert 1 <= floor <= steps
    assert floor >= min(steps, info.steps.min)
    got = fewer_steps(auto(steps), level, policy, info)
    assert floor <= got <= steps
    assert fewer_steps(auto(steps), 0.0, policy, info) == steps
    assert fewer_steps(auto(steps), 1.0, policy, info) == floor


@given(steps=STEPS, policy=POLICIES, info=INFOS, one=LEVELS, other=LEVELS)
def test_more_load_is_never_more_steps(steps, policy, info, one, other):
    low, high = sorted((one, other))
    low_steps = fewer_steps(auto(steps), low, policy, info)
    assert fewer_steps(auto(steps), high, policy, info) <= low_steps


@given(steps=STEPS, level=LEVELS, policy=POLICIES, info=INFOS)
def test_who_did_not_leave_the_quality_to_us_gets_what_was_asked_for(steps, level, policy, info):
    spec = video_pb2.ResolvedSpec(steps=steps)
    assert fewer_steps(spec, level, policy, info) == steps


def test_the_floor_is_the_tenants_and_half_where_none_is_set():
    info = model_pb2.ModelInfo(steps=model_pb2.IntRange(min=4, max=50))
    assert least_steps(25, tenant_pb2.TenantPolicy(), info) == 13
    assert least_steps(25, tenant_pb2.TenantPolicy(min_steps_percent=80), info) == 20
    assert least_steps(25, tenant_pb2.TenantPolicy(min_steps_percent=0), info) == 4
    assert least_steps(3, tenant_pb2.TenantPolicy(), info) == 3


def test_it_begins_at_one_wait_and_ends_at_a_lower_one():
    brown_out = BrownOut(WAITS)
    assert brown_out.level(QUEUE, 100.0) == 0.0
    assert not brown_out.queues
    first = brown_out.level(QUEUE, 120.0)
    assert first > 0
    assert brown_out.queues == (QUEUE,)
    # The same wait that did not begin it does not end it.
    assert 0 < brown_out.level(QUEUE, 100.0) < first
    assert brown_out.level(QUEUE, 59.0) == 0.0
    assert not brown_out.queues
    assert brown_out.level(QUEUE, 100.0) == 0.0


@given(waits=st.lists(st.none() | st.floats(0, 1e6), max_size=30))
def test_levels_are_shares_and_one_model_is_not_anothers(waits):
    brown_out = BrownOut(WAITS)
    for wait_s in waits:
        level = brown_out.level(QUEUE, wait_s)
        assert 0.0 <= level <= 1.0
        if wait_s is None or wait_s < WAITS.off_s:
            assert level == 0.0
        if wait_s is not None and wait_s >= WAITS.full_s:
            assert level == 1.0
    assert brown_out.level(("wan", "1", "bora"), 0.0) == 0.0


def test_switched_off_it_never_begins():
    assert BrownOut(None).level(QUEUE, 1e9) == 0.0


def test_what_is_remembered_is_bounded():
    brown_out = BrownOut(WAITS)
    for number in range(10 * MAX_QUEUES):
        assert brown_out.level(("wan", "1", f"tenant-{number}"), 1e9) == 1.0
    assert len(brown_out.queues) == MAX_QUEUES
