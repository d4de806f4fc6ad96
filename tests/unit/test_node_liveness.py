"""When a worker is given up: heartbeats, load times, and devices that hang."""

from __future__ import annotations

import pytest

from node_agent.liveness import Liveness, LivenessLimits

LIMITS = LivenessLimits(
    heartbeat_timeout_s=2,
    loading_silence_s=20,
    start_timeout_s=120,
    load_timeout_s=600,
    stall_floor_s=30,
    stall_steps=10,
)


def verdict(liveness: Liveness, now_s: float, *, silent_s: float = 0, step_s: float = 0):
    return liveness.verdict(now_s=now_s, silent_s=silent_s, step_s=step_s)


@pytest.fixture
def serving() -> Liveness:
    liveness = Liveness(LIMITS, now_s=0)
    liveness.heard(100)
    liveness.serving = True
    return liveness


def test_a_process_has_time_to_start():
    liveness = Liveness(LIMITS, now_s=0)
    assert verdict(liveness, 120) is None
    assert "did not start" in verdict(liveness, 121)


def test_silence_is_borne_longer_while_it_loads():
    liveness = Liveness(LIMITS, now_s=0)
    liveness.heard(1)
    assert verdict(liveness, 21) is None
    assert "no heartbeat" in verdict(liveness, 21.1)


def test_loading_ends_though_the_heart_beats():
    liveness = Liveness(LIMITS, now_s=0)
    liveness.heard(600)
    assert verdict(liveness, 600) is None
    liveness.heard(601)
    assert "did not load" in verdict(liveness, 601)


def test_two_seconds_of_silence_are_too_long_when_it_serves(serving):
    assert verdict(serving, 102) is None
    assert "no heartbeat for 2.1 s" in verdict(serving, 102.1)


def test_the_agents_own_stand_still_is_not_held_against_the_worker(serving):
    serving.forgive(60)
    assert verdict(serving, 161.9) is None
    assert verdict(serving, 162.1) is not None


def test_an_idle_device_is_never_hung(serving):
    serving.heard(1e6)
    assert verdict(serving, 1e6) is None


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.1, 30), (3.0, 30), (3.1, 31), (60, 600)])
def test_a_run_is_granted_the_floor_or_ten_steps(serving, step_s, limit_s):
    assert verdict(serving, 101, silent_s=limit_s, step_s=step_s) is None
    assert "no progress" in verdict(serving, 101, silent_s=limit_s + 0.1, step_s=step_s)
