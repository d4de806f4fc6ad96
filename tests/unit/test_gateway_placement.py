"""Placement: which node a job goes to, and how long it would wait."""

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.placement import (
    IDLE_SHARE,
    NEAR_SHARE,
    Ask,
    NodeView,
    backlog_s,
    choose,
    cost_s,
    predicted_wait_s,
    typical_speed,
    work_units,
)

MODEL = ("wan", "1")
OTHER = ("wan", "2")


def view(node_id="n", **changes):
    fields = {
        "node_id": node_id,
        "models": frozenset({MODEL}),
        "routable": True,
        "free_slots": 1,
        "workers": 1,
        "remaining_work_s": 0.0,
        "sent_work_s": 0.0,
        "units_per_second": 10.0,
        "held_jobs": 0,
        **changes,
    }
    return NodeView(**fields)


@st.composite
def fleets(draw):
    count = draw(st.integers(0, 8))
    return [
        view(
            f"n{index}",
            models=draw(
                st.sampled_from([frozenset({MODEL}), frozenset({OTHER}), frozenset({MODEL, OTHER})])
            ),
            routable=draw(st.booleans()),
            free_slots=draw(st.integers(0, 3)),
            workers=draw(st.integers(0, 4)),
            remaining_work_s=draw(st.floats(0, 1e4)),
            sent_work_s=draw(st.floats(0, 1e4)),
            units_per_second=draw(st.sampled_from([0.0, 1.0, 5.0, 50.0])),
            held_jobs=draw(st.integers(0, 3)),
        )
        for index in range(count)
    ]


ASKS = st.builds(
    Ask,
    model=st.just(MODEL),
    units=st.floats(0.1, 1e5),
    avoid=st.frozensets(st.sampled_from([f"n{index}" for index in range(8)]), max_size=4),
    alone=st.booleans(),
)


@given(nodes=fleets(), ask=ASKS, seed=st.integers(0, 99))
def test_a_choice_is_able_free_and_none_costs_much_less(nodes, ask, seed):
    chosen = choose(nodes, ask, rng=random.Random(seed))
    able = [n for n in nodes if n.routable and ask.model in n.models]
    allowed = [n for n in able if n.node_id not in ask.avoid] or able
    free = [n for n in allowed if n.free_slots > 0]
    if ask.alone:
        free = [n for n in free if not n.held_jobs] or free
    if chosen is None:
        assert not free
        return
    assert chosen in free
    speed = typical_speed(able)
    cost = cost_s(chosen, ask.units, fallback_speed=speed) / (1 + NEAR_SHARE)
    if backlog_s(chosen) <= 0:
        cost /= 1 + IDLE_SHARE
    assert all(cost <= cost_s(n, ask.units, fallback_speed=speed) * (1 + 1e-9) for n in free)


@given(nodes=fleets(), ask=ASKS, more_s=st.floats(0.001, 1e4))
def test_more_work_never_makes_a_node_more_attractive(nodes, ask, more_s):
    first = choose(nodes, ask, rng=random.Random(1))
    if first is None:
        return
    heavier = [
        n
        if n is first
        else view(
            **{name: getattr(n, name) for name in NodeView.__dataclass_fields__}
            | {"remaining_work_s": n.remaining_work_s + more_s}
        )
        for n in nodes
    ]
    again = choose(heavier, ask, rng=random.Random(1))
    assert again is not None
    speed = typical_speed(heavier)
    if again.node_id != first.node_id:
        laden = next(n for n in heavier if n.node_id == first.node_id)
        bound = cost_s(laden, ask.units, fallback_speed=speed) * (1 + NEAR_SHARE)
        if backlog_s(again) <= 0:
            bound *= 1 + IDLE_SHARE
        assert cost_s(again, ask.units, fallback_speed=speed) <= bound * (1 + 1e-9)


def test_a_node_that_failed_the_job_is_passed_over_even_for_a_full_one():
    nodes = [view("failed", free_slots=2), view("full", free_slots=0)]
    ask = Ask(MODEL, 10.0, avoid=frozenset({"failed"}))
    assert choose(nodes, ask, rng=random.Random(1)) is None
    alone_left = [view("failed", free_slots=2), view("gone", routable=False)]
    chosen = choose(alone_left, ask, rng=random.Random(1))
    assert chosen is not None
    assert chosen.node_id == "failed"


def test_a_job_that_runs_alone_goes_to_an_empty_node_and_else_waits_at_one():
    empty = view("empty", units_per_second=0.1)
    busy = view("busy", held_jobs=1)
    ask = Ask(MODEL, 10.0, alone=True)
    assert choose([empty, busy], ask, rng=random.Random(1)) is empty
    # The node itself keeps it apart: waiting here for an empty one might never end.
    assert choose([busy], ask, rng=random.Random(1)) is busy


def test_a_fast_busy_node_beats_a_slow_idle_one_where_it_ends_sooner():
    slow = view("slow", units_per_second=1.0)
    fast = view("fast", units_per_second=10.0, remaining_work_s=5.0)
    ask = Ask(MODEL, 100.0)
    chosen = choose([slow, fast], ask, rng=random.Random(1))
    assert chosen is fast
    small = choose([slow, fast], Ask(MODEL, 2.0), rng=random.Random(1))
    assert small is slow


def test_waiting_weighs_more_than_running():
    slow = view("slow", units_per_second=1.0)
    fast = view("fast", units_per_second=2.0, remaining_work_s=20.0)
    # Behind the busy one it would end in 70 s, and the next job would wait for it.
    assert choose([slow, fast], Ask(MODEL, 100.0), rng=random.Random(1)) is slow


def test_nodes_that_differ_by_their_measure_alone_share_the_work():
    nodes = [view(f"n{index}", units_per_second=10.0 + index / 10) for index in range(4)]
    rng = random.Random(7)
    seen = {choose(nodes, Ask(MODEL, 1.0), rng=rng).node_id for _ in range(200)}
    assert len(seen) == 4
    slower = view("slower", units_per_second=8.0)
    assert choose([slower, nodes[0]], Ask(MODEL, 1.0), rng=rng) is nodes[0]


def test_of_nodes_that_are_near_an_idle_one_is_taken():
    idle = view("idle", units_per_second=10.0)
    busy = view("busy", units_per_second=10.9, remaining_work_s=0.1)
    rng = random.Random(7)
    assert all(choose([idle, busy], Ask(MODEL, 1000.0), rng=rng) is idle for _ in range(20))


def test_an_idle_node_goes_before_a_better_one_that_may_be_late():
    idle = view("idle", units_per_second=10.0)
    busy = view("busy", units_per_second=14.0, remaining_work_s=0.1)
    assert choose([idle, busy], Ask(MODEL, 1000.0), rng=random.Random(7)) is idle
    # Where it is far better it is worth the wait.
    far = view("far", units_per_second=20.0, remaining_work_s=0.1)
    assert choose([idle, far], Ask(MODEL, 1000.0), rng=random.Random(7)) is far


def test_what_was_sent_since_the_report_counts():
    told = view("a", sent_work_s=30.0)
    idle = view("b", remaining_work_s=20.0)
    assert choose([told, idle], Ask(MODEL, 1.0), rng=random.Random(1)) is idle
    # Two workers take what was sent side by side.
    wide = view("c", sent_work_s=30.0, workers=2)
    assert choose([wide, idle], Ask(MODEL, 1.0), rng=random.Random(1)) is wide


def test_ties_are_broken_at_random():
    nodes = [view(f"n{index}") for index in range(4)]
    rng = random.Random(7)
    seen = {choose(nodes, Ask(MODEL, 1.0), rng=rng).node_id for _ in range(200)}
    assert len(seen) == 4


@given(nodes=fleets(), queued=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_a_longer_line_is_never_a_shorter_wait(nodes, queued, more):
    wait = predicted_wait_s(nodes, MODEL, queued_units=max(queued, 1.0))
    longer = predicted_wait_s(nodes, MODEL, queued_units=max(queued, 1.0) + more)
    if wait is None:
        assert longer is None
        assert not [n for n in nodes if n.routable and MODEL in n.models]
    else:
        assert 0 <= wait <= longer


def test_a_free_node_is_no_wait_and_a_full_region_its_backlog():
    assert predicted_wait_s([view()], MODEL, queued_units=0) == 0
    full = [view("a", free_slots=0, remaining_work_s=10.0, units_per_second=2.0)]
    assert predicted_wait_s(full, MODEL, queued_units=0) == 10.0
    assert predicted_wait_s(full, MODEL, queued_units=40.0) == 30.0
    assert predicted_wait_s([], MODEL, queued_units=0) is None


def test_units_are_those_that_nodes_measure_in():
    assert work_units(128, 96, 17, 20) == 128 * 96 * 17 * 20 / 1e6
