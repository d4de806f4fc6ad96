"""Nodes that rest and retries that wait."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.ejection import (
    MIN_RUNS,
    RETRY_FLOOR,
    RETRY_WINDOW_S,
    WINDOW_S,
    FailureRate,
    RetryBudget,
    may_eject,
)


def test_a_node_rests_when_most_of_enough_runs_failed():
    rate = FailureRate()
    for index in range(MIN_RUNS - 1):
        rate.note(float(index), failed=True)
    assert not rate.too_high(4.0)
    rate.note(4.0, failed=True)
    assert rate.too_high(4.0)
    assert not rate.too_high(4.0 + WINDOW_S + 1)


def test_a_node_that_fails_half_goes_on():
    rate = FailureRate()
    for index in range(10):
        rate.note(float(index), failed=index % 2 == 0)
    assert not rate.too_high(10.0)


@given(nodes=st.integers(0, 50))
def test_never_more_than_half_are_ejected(nodes):
    ejected = 0
    while may_eject(ejected=ejected, nodes=nodes):
        ejected += 1
    assert ejected * 2 <= nodes


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
