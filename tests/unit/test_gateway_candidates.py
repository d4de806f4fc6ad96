"""Who may get work: three sources of what is known, and none of them alone."""

import math

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import node_pb2

from gateway.fleet.candidates import MASS_RATIO, NO_WORD, Sight, candidates

READY, UNHEALTHY = node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_UNHEALTHY
LOST, CORDONED = node_pb2.NODE_STATE_LOST, node_pb2.NODE_STATE_CORDONED
DRAINING = node_pb2.NODE_STATE_DRAINING
UNFIT, DECIDED = (UNHEALTHY, LOST), (CORDONED, DRAINING)
NOW_S = 100.0


@st.composite
def fleets(draw):
    size = draw(st.integers(0, 12))
    return [
        Sight(
            node_id=f"n{index}",
            ready=draw(st.booleans()),
            said=draw(st.sampled_from([NO_WORD, READY, *UNFIT, *DECIDED])),
            listed=draw(st.booleans()),
            suspect=(suspect := draw(st.booleans())),
            rests_until_s=draw(st.floats(50.0, 150.0)) if suspect else -math.inf,
        )
        for index in range(size)
    ]


@given(fleet=fleets())
def test_a_node_whose_stream_is_broken_is_never_a_candidate(fleet):
    found = candidates(fleet, NOW_S)
    assert found.routable <= {s.node_id for s in fleet if s.ready}
    assert found.on_trial <= found.routable


@given(fleet=fleets())
def test_broken_streams_count_against_no_cap(fleet):
    """Who is out for a broken stream changes nothing of who rests among the others."""
    own_word = [s for s in fleet if s.said not in UNFIT and s.listed]
    alive = [s for s in own_word if s.ready]
    assert candidates(own_word, NOW_S).routable == candidates(alive, NOW_S).routable


@given(fleet=fleets())
def test_what_is_drained_or_cordoned_gets_nothing(fleet):
    found = candidates(fleet, NOW_S)
    assert not found.routable & {s.node_id for s in fleet if s.said in DECIDED}


@given(fleet=fleets())
def test_what_the_control_plane_calls_unfit_gets_nothing_unless_it_calls_too_many_so(fleet):
    found = candidates(fleet, NOW_S)
    unfit = {s.node_id for s in fleet if s.said in UNFIT}
    if found.own_eyes:
        gone = sum(s.said in UNFIT or not s.listed for s in fleet)
        assert gone > MASS_RATIO * len(fleet)
        assert not any(s.ready and s.said in (NO_WORD, READY) for s in fleet)
        assert found.routable <= unfit
        assert found.routable
    else:
        assert not found.routable & unfit


@given(fleet=fleets())
def test_never_more_than_half_rest_and_one_is_always_left(fleet):
    found = candidates(fleet, NOW_S)
    trusted = [s for s in fleet if s.ready and s.said not in DECIDED]
    if not found.own_eyes:
        trusted = [s for s in trusted if s.said not in UNFIT]
    kept_out = {s.node_id for s in trusted} - found.routable
    assert 2 * len(kept_out) <= len(trusted)
    assert bool(found.routable) == bool(trusted)
    resting = {s.node_id for s in trusted if s.suspect and s.rests_until_s > NOW_S}
    assert kept_out <= resting
    # Those kept out are the ones whose rest lasts longest; the others are on trial.
    assert found.on_trial == {s.node_id for s in trusted if s.suspect} - kept_out
    until = {s.node_id: s.rests_until_s for s in trusted}
    for node_id in resting - kept_out:
        assert all(until[node_id] <= until[other] for other in kept_out)


@given(fleet=fleets())
def test_without_a_word_the_gateway_goes_by_its_own_eyes(fleet):
    mute = [Sight(s.node_id, s.ready, NO_WORD, s.listed) for s in fleet]
    found = candidates(mute, NOW_S)
    assert found.routable == {s.node_id for s in fleet if s.ready}
    assert not found.own_eyes


@given(fleet=fleets(), later=st.floats(0.0, 60.0))
def test_until_its_time_the_judgement_stands(fleet, later):
    found = candidates(fleet, NOW_S)
    if NOW_S + later < found.until_s:
        again = candidates(fleet, NOW_S + later)
        assert again.routable == found.routable


def fleet_of(*said, ready=True):
    return [Sight(f"n{index}", ready, word) for index, word in enumerate(said)]


def test_one_of_three_that_fails_calls_is_left_alone():
    assert candidates(fleet_of(READY, UNHEALTHY, READY), NOW_S).routable == {"n0", "n2"}


def test_all_of_three_cannot_be_unfit_while_they_say_that_they_are_well():
    found = candidates(fleet_of(UNHEALTHY, UNHEALTHY, LOST), NOW_S)
    assert found.own_eyes
    assert found.routable == {"n0", "n1", "n2"}


def test_half_that_are_unfit_and_half_that_are_gone_for_themselves_are_believed():
    fleet = [*fleet_of(UNHEALTHY, UNHEALTHY), *fleet_of(READY, READY, ready=False)]
    fleet = [Sight(f"n{i}", s.ready, s.said) for i, s in enumerate(fleet)]
    assert candidates(fleet, NOW_S).routable == frozenset()
