from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.regions.choice import (
    FIRST_SHARE,
    RAMP_S,
    Offer,
    RegionState,
    choose_region,
    completion_s,
    local_share,
    region_state,
)

SECONDS = st.floats(0, 1e4)
STATES = st.sampled_from(RegionState)
OFFERS = st.builds(
    Offer,
    region=st.sampled_from(["eu", "us", "sa"]),
    state=STATES,
    predicted_wait_s=st.none() | SECONDS,
    units_per_second=st.just(0.0) | st.floats(0.01, 100),
    round_trip_s=st.floats(0, 1),
)
LOCAL = OFFERS.map(lambda offer: replace(offer, region="ap", round_trip_s=0.0))


def serving(region, wait_s=0.0, speed=1.0, rtt_s=0.0):
    return Offer(region, RegionState.SERVING, wait_s, speed, rtt_s)


ABLE = st.builds(serving, st.just("ap"), SECONDS, st.just(0.0) | st.floats(0.01, 100))
OTHERS = st.lists(OFFERS, max_size=3, unique_by=lambda offer: offer.region)
UNITS = st.floats(0.1, 1e4)


def choose(local, *others, units=10.0, margin_s=10.0, share=1.0, draw=0.5):
    return choose_region(local, others, units=units, margin_s=margin_s, share=share, draw=draw)


def test_work_stays_where_it_is_until_another_region_is_earlier_by_the_margin():
    assert choose(serving("ap", 9.9), serving("eu")) == "ap"
    assert choose(serving("ap", 10.0), serving("eu")) == "ap"
    assert choose(serving("ap", 10.1), serving("eu")) == "eu"
    assert choose(serving("ap", 10.1), serving("eu", rtt_s=0.2)) == "ap", "the way there counts"
    assert choose(serving("ap", speed=0.4), serving("eu")) == "eu", "so does its speed"


@pytest.mark.parametrize("state", [s for s in RegionState if s is not RegionState.SERVING])
def test_a_region_that_cannot_serve_gives_its_work_away_and_takes_none(state):
    away = replace(serving("ap"), state=state)
    assert choose(away, serving("eu", 500.0), serving("us", 400.0)) == "us"
    assert choose(away) is None
    assert choose(serving("ap", 1000.0), replace(away, region="eu")) == "ap"


def test_a_region_without_the_model_takes_no_job_for_it():
    without = replace(serving("eu"), predicted_wait_s=None)
    assert choose(serving("ap", 1000.0), without) == "ap"
    assert choose(replace(serving("ap"), predicted_wait_s=None), serving("eu", 9.0)) == "eu"


def test_failback_is_gradual():
    assert local_share(back_for_s=None) == 1.0
    assert local_share(back_for_s=0.0) == FIRST_SHARE
    assert FIRST_SHARE < local_share(back_for_s=RAMP_S / 2) < 1.0
    assert local_share(back_for_s=RAMP_S) == 1.0
    share = local_share(back_for_s=0.0)
    assert choose(serving("ap"), serving("eu"), share=share, draw=share - 0.01) == "ap"
    assert choose(serving("ap"), serving("eu"), share=share, draw=share) == "eu"
    # It is no reason to make anybody wait for much longer.
    assert choose(serving("ap"), serving("eu", 30.0), share=share, draw=0.99) == "ap"


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"answers": True, "ready_workers": 2}, RegionState.SERVING),
        ({"answers": True}, RegionState.NOT_SERVING),
        # What its gateway says outweighs a missing summary: its control plane may be away.
        ({"answers": True, "ready_workers": 1, "has_summary": False}, RegionState.SERVING),
        ({"answers": True, "ready_workers": 2, "draining": True}, RegionState.DRAINING),
        ({}, RegionState.UNKNOWN),
        ({"probed": True}, RegionState.UNKNOWN),
        ({"has_summary": False}, RegionState.UNKNOWN),
        ({"has_summary": False, "probed": True}, RegionState.DOWN),
    ],
)
def test_what_a_region_is(facts, state):
    nothing = {
        "draining": False,
        "answers": False,
        "ready_workers": 0,
        "has_summary": True,
        "probed": False,
    }
    assert region_state(**{**nothing, **facts}) is state


@given(LOCAL, OTHERS, UNITS, SECONDS, st.floats(0, 1), st.floats(0, 1))
def test_a_choice_can_serve(local, others, units, margin_s, share, draw):
    chosen = choose_region(local, others, units=units, margin_s=margin_s, share=share, draw=draw)
    able = {offer.region for offer in (local, *others) if offer.able}
    assert (chosen in able) if able else chosen is None


@given(ABLE, OTHERS, UNITS, SECONDS, SECONDS)
def test_more_work_never_attracts(local, others, units, margin_s, more_s):
    def ask(offers):
        return choose_region(local, offers, units=units, margin_s=margin_s, share=1.0, draw=0.5)

    chosen = ask(others)
    busier = [
        replace(offer, predicted_wait_s=offer.predicted_wait_s + more_s)
        if offer.region != chosen and offer.predicted_wait_s is not None
        else offer
        for offer in others
    ]
    assert ask(busier) == chosen


@given(ABLE, OTHERS, UNITS, SECONDS)
def test_work_that_leaves_gains_more_than_the_margin(local, others, units, margin_s):
    chosen = choose_region(local, others, units=units, margin_s=margin_s, share=1.0, draw=0.99)
    if chosen == "ap":
        return
    speeds = [o.units_per_second for o in (local, *others) if o.able and o.units_per_second > 0]
    fallback = min(speeds, default=1.0)
    there = min(
        completion_s(offer, units, fallback_speed=fallback)
        for offer in others
        if offer.able and offer.region == chosen
    )
    assert completion_s(local, units, fallback_speed=fallback) - there > margin_s
