"""The invariants of a node's assessment, and the paths through it that matter."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import node_pb2

from control_plane.health.assess import Evidence, Streak, assess, hold_s
from control_plane.health.config import HealthSettings
from control_plane.health.track import NodeTrack

RULES = HealthSettings()
NOW_S = 10_000.0
STARTING = node_pb2.NODE_STATE_STARTING
LOADING = node_pb2.NODE_STATE_LOADING
READY = node_pb2.NODE_STATE_READY
DRAINING = node_pb2.NODE_STATE_DRAINING
CORDONED = node_pb2.NODE_STATE_CORDONED
UNHEALTHY = node_pb2.NODE_STATE_UNHEALTHY
LOST = node_pb2.NODE_STATE_LOST
REPORTABLE = [s for s in node_pb2.NodeState.values() if s not in (0, LOST)]

streaks = st.one_of(
    st.builds(Streak, successes=st.integers(0, 5)),
    st.builds(Streak, failures=st.integers(1, 6), reason=st.just("no answer")),
)
evidences = st.builds(
    Evidence,
    reported=st.sampled_from(REPORTABLE),
    reported_reason=st.sampled_from(["", "a reason"]),
    reported_at_s=st.floats(NOW_S - 60, NOW_S),
    silent_after_s=st.sampled_from([1.4, 7.0]),
    device_fault=st.sampled_from(["", "", "cuda:0: XID error 79"]),
    probe=streaks,
    canary=streaks,
    many_fail=st.booleans(),
    none_ready=st.booleans(),
    before=st.sampled_from([0, *REPORTABLE]),
    before_reason=st.sampled_from(["", "it was bad"]),
    falls_s=st.lists(st.floats(NOW_S - 1000, NOW_S), max_size=16).map(lambda x: tuple(sorted(x))),
    well_since_s=st.one_of(st.none(), st.floats(NOW_S - 400, NOW_S)),
)


@given(evidences)
def test_only_a_node_that_says_so_itself_is_ready(evidence):
    state = assess(evidence, NOW_S, RULES).state
    assert state != READY or evidence.reported == READY


@given(evidences)
def test_nothing_overrides_a_drain_or_a_cordon(evidence):
    answer = assess(evidence, NOW_S, RULES)
    if evidence.reported in (DRAINING, CORDONED):
        assert answer.state == evidence.reported
    else:
        assert answer.state not in (DRAINING, CORDONED)


@given(evidences)
def test_few_failures_take_no_ready_node_out(evidence):
    calm = dataclasses.replace(
        evidence,
        reported=READY,
        before=READY,
        device_fault="",
        reported_at_s=NOW_S,
        probe=Streak(failures=min(evidence.probe.failures, RULES.probe.failures - 1)),
        canary=Streak(failures=min(evidence.canary.failures, RULES.canary.failures - 1)),
    )
    assert assess(calm, NOW_S, RULES).state == READY


@given(evidences)
def test_while_many_fail_no_ready_node_goes_on_their_evidence(evidence):
    doubted = dataclasses.replace(
        evidence, reported=READY, before=READY, many_fail=True, device_fault=""
    )
    assert assess(doubted, NOW_S, RULES).state == READY


@given(evidences)
def test_what_was_unhealthy_has_to_prove_itself(evidence):
    was_out = dataclasses.replace(evidence, before=UNHEALTHY)
    if assess(was_out, NOW_S, RULES).state == READY:
        assert was_out.probe.successes >= RULES.probe.successes
        assert was_out.canary.failures == 0
        hold = hold_s(was_out.falls_s, NOW_S, RULES.flapping)
        assert was_out.none_ready or hold == 0 or NOW_S - was_out.well_since_s >= hold


@given(evidences)
def test_it_is_stable_has_a_reason_and_never_says_lost(evidence):
    answer = assess(evidence, NOW_S, RULES)
    again = assess(
        dataclasses.replace(evidence, before=answer.state, before_reason=answer.reason),
        NOW_S,
        RULES,
    )
    assert again.state == answer.state
    assert answer.state not in (LOST, 0)
    assert answer.reason or answer.state != UNHEALTHY


@given(st.lists(st.floats(0, NOW_S), max_size=200), st.floats(NOW_S, NOW_S + 1000))
def test_the_hold_grows_with_the_falls_and_is_bounded(falls, now_s):
    rules = RULES.flapping
    hold = hold_s(tuple(falls), now_s, rules)
    assert 0 <= hold <= rules.max_hold_s
    assert hold_s((*falls, now_s), now_s, rules) >= hold
    assert hold_s(tuple(falls), now_s + rules.window_s + 1, rules) == 0


def track(**fields):
    status = node_pb2.NodeStatus(state=READY)
    given = {"rules": RULES, "lease_ttl_s": 10.0, "status": status, "now_s": 0.0, **fields}
    return NodeTrack(**given)


def report(state=READY, **fields):
    return node_pb2.NodeStatus(state=state, **fields)


def test_a_node_that_cannot_be_reached_goes_and_comes_back():
    node = track()
    states = [node.probed(ok=False, reason="refused", now_s=t).state for t in (2, 4, 6)]
    assert states == [READY, READY, UNHEALTHY]
    assert "does not answer at its address: refused" in node.now.reason
    # Its reports go on and say that all is well; that does not help.
    assert node.reported(report(), now_s=7).state == UNHEALTHY
    assert node.probed(ok=True, now_s=8).state == UNHEALTHY
    assert "recovering" in node.now.reason
    assert node.probed(ok=True, now_s=10).state == READY


def test_a_success_between_failures_begins_the_count_anew():
    node = track()
    for t, ok in enumerate([False, False, True, False, False]):
        assert node.probed(ok=ok, reason="x", now_s=t).state == READY


def test_a_silent_node_is_out_before_its_lease_ends():
    node = track()
    assert node.tick(now_s=2.0, every_s=2, many_fail=False).state == READY
    for at_s in (4.0, 6.0):
        node.tick(now_s=at_s, every_s=2, many_fail=False)
    assert node.tick(now_s=7.5, every_s=2, many_fail=False).state == UNHEALTHY
    node.probed(ok=True, now_s=8)
    node.probed(ok=True, now_s=8)
    assert node.reported(report(), now_s=8).state == READY


def test_a_silence_that_was_our_own_is_not_held_against_a_node():
    node = track()
    node.tick(now_s=2.0, every_s=2, many_fail=False)
    # This process was stopped for half a minute.
    assert node.tick(now_s=32.0, every_s=2, many_fail=False).state == READY


def test_one_canary_is_bad_luck_two_are_a_fault_and_one_success_heals():
    node = track()
    for _ in range(2):
        node.probed(ok=True, now_s=0)
    assert node.canaried(ok=False, reason="worker_died", now_s=1).state == READY
    assert node.canaried(ok=False, reason="worker_died", now_s=2).state == UNHEALTHY
    assert "canary generations fail: worker_died" in node.now.reason
    assert node.canaried(ok=True, now_s=3).state == READY


def test_a_node_that_flaps_has_to_stay_well_for_longer_each_time():
    node, now_s, waits = track(), 0.0, []
    node.probed(ok=True, now_s=0)
    node.probed(ok=True, now_s=0)
    for _ in range(8):
        node.reported(report(UNHEALTHY, reason="worker died"), now_s=now_s)
        # It goes through its beginnings again; that must not be a way around the hold.
        node.reported(report(LOADING), now_s=now_s + 1)
        began_s = now_s = now_s + 2
        while node.reported(report(), now_s=now_s).state != READY:
            now_s += 1
        waits.append(now_s - began_s)
    assert waits[:2] == [0, 0]
    assert waits[2] >= 28
    assert waits[2] < waits[3] < waits[4]
    assert max(waits) <= RULES.flapping.max_hold_s


def test_a_hold_never_keeps_the_last_node_out():
    node = track()
    node.remember_falls([-30.0, -20.0, -10.0])
    node.probed(ok=True, now_s=0)
    node.probed(ok=True, now_s=0)
    node.reported(report(UNHEALTHY, reason="x"), now_s=1)
    assert node.reported(report(), now_s=2).state == UNHEALTHY
    assert node.tick(now_s=3, every_s=2, many_fail=False, none_ready=True).state == READY
    # Once it is in, others that come make no difference.
    assert node.tick(now_s=4, every_s=2, many_fail=False, none_ready=False).state == READY


def test_the_assessment_of_another_replica_is_gone_on_with():
    node = track(before=UNHEALTHY, before_reason="it does not answer")
    assert node.now.state == UNHEALTHY
    assert node.now.reason == (
        "recovering: it has to answer at its address a few times (before: it does not answer)"
    )
    node.reported(report(), now_s=1)
    assert node.now.reason.count("recovering") == 1
    node.probed(ok=True, now_s=2)
    assert node.probed(ok=True, now_s=4).state == READY


def test_falls_that_the_history_knows_count():
    node = track()
    node.remember_falls([-30.0, -20.0, -10.0])
    node.probed(ok=True, now_s=0)
    node.probed(ok=True, now_s=0)
    node.reported(report(UNHEALTHY, reason="x"), now_s=1)
    assert node.reported(report(), now_s=30).state == UNHEALTHY
    assert "has to stay well for 60 s" in node.now.reason


def device(**fields):
    return node_pb2.DeviceStatus(device=fields.pop("device", "cuda:0"), **fields)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"xid_errors": [79]}, "cuda:0: XID error 79"),
        ({"ecc_errors": 3}, {"ecc_errors": 5}, "2 new uncorrected"),
        ({}, {"temperature_c": 96.0}, "96 °C is too hot"),
    ],
)
def test_a_device_fault_takes_the_node_out(before, after, reason):
    node = track(status=report(devices=[device(**before)]))
    assert node.now.state == READY
    assert node.reported(report(devices=[device(**after)]), now_s=1).state == UNHEALTHY
    assert reason in node.now.reason


@pytest.mark.parametrize(
    "figures",
    [{"xid_errors": [13, 31]}, {"ecc_errors": 7}, {"temperature_c": 88.0}, {}],
)
def test_what_a_device_survives_is_no_fault(figures):
    node = track(status=report(devices=[device(**figures)]))
    assert node.reported(report(devices=[device(**figures)]), now_s=1).state == READY


def test_a_hot_device_has_to_cool_well_below_the_limit():
    node = track()
    node.probed(ok=True, now_s=0)
    node.probed(ok=True, now_s=0)
    states = [
        node.reported(report(devices=[device(temperature_c=celsius)]), now_s=t).state
        for t, celsius in enumerate([94, 95, 94, 86, 84, 94])
    ]
    assert states == [READY, UNHEALTHY, UNHEALTHY, UNHEALTHY, READY, READY]


def test_one_bad_device_of_two_leaves_the_node_in():
    good, bad = device(device="cuda:1"), device(xid_errors=[79])
    node = track(status=report(devices=[good, bad]))
    assert node.now.state == READY
    assert node.reported(report(devices=[bad]), now_s=1).state == UNHEALTHY
