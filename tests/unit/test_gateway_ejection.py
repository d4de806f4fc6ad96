"""Nodes that rest and retries that wait."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.ejection import (
    RETRY_FLOOR,
    RETRY_RATIO,
    RETRY_WINDOW_S,
    EjectionRules,
    RetryBudget,
    Standing,
)

RULES = EjectionRules()


def fail(standing: Standing, now_s: float) -> float:
    """A run that was sent just before and failed."""
    return standing.note(now_s, sent_at_s=now_s, failed=True)


def succeed(standing: Standing, now_s: float, *, sent_at_s: float | None = None) -> None:
    sent_at_s = now_s if sent_at_s is None else sent_at_s
    assert standing.note(now_s, sent_at_s=sent_at_s, failed=False) == 0


def rest(standing: Standing, now_s: float) -> float:
    """Fails until it rests, and for how long."""
    while not (rest_s := fail(standing, now_s)):
        pass
    return rest_s


# --- when a node rests ---


def test_three_failures_in_a_row_send_a_node_to_rest():
    standing = Standing()
    assert [fail(standing, at_s) for at_s in (1.0, 2.0, 3.0)] == [0, 0, 30]
    assert standing.suspect
    assert standing.rests_until_s == 33


def test_a_success_between_them_begins_the_count_anew():
    standing = Standing()
    for at_s in (1.0, 2.0):
        assert fail(standing, at_s) == 0
    for at_s in (2.1, 2.2, 2.3, 2.4):
        succeed(standing, at_s)
    assert [fail(standing, at_s) for at_s in (3.0, 4.0, 5.0)] == [0, 0, 30]


def test_more_than_half_of_enough_runs_do_the_same_though_never_three_in_a_row():
    standing = Standing()
    ends = [True, True, False, True, True]
    said = [
        standing.note(float(at_s), sent_at_s=float(at_s), failed=failed)
        for at_s, failed in enumerate(ends)
    ]
    assert said == [0, 0, 0, 0, 30]


def test_a_node_that_fails_half_goes_on():
    standing = Standing()
    for index in range(20):
        assert standing.note(float(index), sent_at_s=float(index), failed=index % 2 == 1) == 0


def test_old_failures_are_forgotten():
    standing = Standing(EjectionRules(failures_in_a_row=100))
    for at_s in range(4):
        assert fail(standing, float(at_s)) == 0
    assert fail(standing, 4.0 + RULES.window_s) == 0


def test_runs_that_were_together_when_the_node_failed_count_once():
    standing = Standing()
    # A worker died with two tails and one on the device: one event.
    assert [standing.note(5.0 + i / 10, sent_at_s=i, failed=True) for i in range(3)] == [0, 0, 0]
    assert not standing.suspect
    # What was sent after it and fails too is another.
    assert fail(standing, 6.0) == 0
    assert fail(standing, 7.0) == 30


# --- how long, and what comes after ---


def test_each_rest_is_twice_as_long_up_to_five_minutes():
    standing, at_s, rests = Standing(), 0.0, []
    for _ in range(6):
        rests.append(rest(standing, at_s))
        at_s = standing.rests_until_s
    assert rests == [30, 60, 120, 240, 300, 300]


def test_good_time_takes_doublings_back():
    standing = Standing()
    at_s = 0.0
    for _ in range(3):
        rest(standing, at_s)
        at_s = standing.rests_until_s
    succeed(standing, at_s)
    assert rest(standing, at_s + 2 * RULES.forgive_s) == 60
    at_s = standing.rests_until_s
    succeed(standing, at_s)
    assert rest(standing, at_s + 1e6) == 30


def test_after_its_rest_one_failure_is_enough():
    standing = Standing()
    rest(standing, 0.0)
    assert standing.suspect
    assert fail(standing, 31.0) == 60


def test_after_its_rest_one_success_makes_it_one_like_any_other():
    standing = Standing()
    rest(standing, 0.0)
    succeed(standing, 40.0, sent_at_s=31.0)
    assert not standing.suspect
    assert [fail(standing, at_s) for at_s in (41.0, 42.0)] == [0, 0]


def test_what_was_sent_before_the_rest_proves_nothing():
    standing = Standing()
    rest(standing, 10.0)
    succeed(standing, 12.0, sent_at_s=5.0)
    assert standing.suspect
    assert standing.note(45.0, sent_at_s=6.0, failed=True) == 0
    assert standing.rests_until_s == 40


def test_a_restarted_agent_has_its_trial_at_once():
    standing = Standing()
    rest(standing, 10.0)
    standing.restarted(12.0)
    assert standing.suspect
    assert standing.rests_until_s == 12.0
    assert fail(standing, 12.5) == 60


@given(
    runs=st.lists(
        st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 50.0), st.booleans()), max_size=60
    )
)
def test_whatever_happens_rests_are_bounded_and_only_failures_cause_them(runs):
    standing, now_s = Standing(), 0.0
    for gap_s, lasted_s, failed in runs:
        now_s += gap_s
        before = standing.suspect
        rest_s = standing.note(now_s, sent_at_s=now_s - lasted_s, failed=failed)
        assert rest_s == 0 or (failed and RULES.first_s <= rest_s <= RULES.max_s)
        if rest_s:
            assert standing.suspect
            assert standing.rests_until_s == now_s + rest_s
        if standing.suspect and not before:
            assert rest_s > 0
        if before and not standing.suspect:
            assert not failed


# --- retries ---


def test_ten_retries_are_always_allowed_and_the_next_waits():
    budget = RetryBudget()
    assert [budget.take(5.0) for _ in range(RETRY_FLOOR)] == [0.0] * RETRY_FLOOR
    wait = budget.take(6.0)
    assert wait == RETRY_WINDOW_S - 1.0
    assert budget.take(6.0 + wait) == 0.0


def test_a_fifth_of_many_runs_may_be_retries():
    budget = RetryBudget()
    for _ in range(100):
        budget.note_start(1.0)
    assert [budget.take(1.0) for _ in range(21)].count(0.0) == 20


@pytest.mark.parametrize("starts", [0, 30, 500])
@given(
    gaps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=80),
)
def test_no_window_holds_more_retries_than_the_budget_and_none_waits_for_ever(starts, gaps):
    budget, taken = RetryBudget(), []
    for _ in range(starts):
        budget.note_start(0.0)
    for now_s in itertools.accumulate(gaps):
        wait_s = budget.take(now_s)
        assert 0 <= wait_s <= RETRY_WINDOW_S
        if wait_s == 0:
            taken.append(now_s)
    allowed = max(RETRY_FLOOR, int(starts * RETRY_RATIO))
    for end_s in taken:
        assert sum(end_s - RETRY_WINDOW_S < at_s <= end_s for at_s in taken) <= allowed
