"""What a gateway lets through of its part, however the part changes."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.rates import allowance
from gateway.quotas.buckets import Bucket
from gateway.quotas.demand import HALF_LIFE_S, Demand

rates = st.sampled_from([0.0, 0.1, 1.0, 5.0, 100.0])
sizes = st.sampled_from([0.0, 1.0, 2.5, 10.0])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.just(0.0), st.just(0.0)),
        st.tuples(st.just("set"), rates, sizes),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.1, 1.0, 30.0]), st.just(0.0)),
    ),
    max_size=60,
)


@given(steps)
def test_no_more_goes_through_than_the_largest_size_and_what_the_rates_brought(history):
    bucket, now_s, taken, brought, largest = Bucket(0.0, 0.0), 0.0, 0, 0.0, 0.0
    for kind, one, other in history:
        if kind == "take":
            wait_s = bucket.take(now_s)
            taken += wait_s == 0
            if 0 < wait_s < math.inf:
                later = Bucket(bucket.tokens, bucket.at_s, bucket.rate, bucket.size)
                assert later.take(now_s + wait_s + 1e-6) == 0
        elif kind == "set":
            bucket.set(now_s, rate=one, size=other)
            largest = max(largest, other)
        else:
            brought += one * bucket.rate
            now_s += one
        assert -1e-9 <= bucket.tokens <= largest + 1e-9
        assert taken <= largest + brought + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 50))
def test_a_full_bucket_lets_its_burst_through_and_then_its_rate(rate, burst):
    bucket = Bucket(float(burst), 0.0)
    bucket.set(0.0, rate=rate, size=float(burst))
    assert [bucket.take(0.0) for _ in range(burst)] == [0.0] * burst
    wait_s = bucket.take(0.0)
    assert math.isclose(wait_s, 1 / rate)
    assert bucket.take(wait_s) == 0.0


def test_a_clock_that_steps_back_brings_nothing():
    bucket = Bucket(1.0, 100.0)
    bucket.set(100.0, rate=1.0, size=1.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) > 0
    assert bucket.take(100.5) > 0


def test_demand_shows_a_steady_rate_and_forgets_it():
    demand = Demand(0.0)
    for number in range(600):
        demand.note(number / 20)
    assert math.isclose(demand.rate(30.0), 20.0, rel_tol=0.05)
    assert math.isclose(demand.rate(30.0 + HALF_LIFE_S), 10.0, rel_tol=0.05)
    assert demand.rate(30.0 + 20 * HALF_LIFE_S) == 0.0


def test_headers_are_structured_fields():
    told = allowance(rate=5.0, burst=10.0, tokens=3.7, missing=6.3, speed=2.5)
    assert told.headers == {
        "RateLimit-Policy": '"requests";q=10;w=2',
        "RateLimit": '"requests";r=3;t=3',
    }
    slow = allowance(rate=0.1, burst=1.0, tokens=0.0, missing=1.0, speed=0.1)
    assert slow.headers["RateLimit-Policy"] == '"requests";q=1;w=10'
    assert slow.headers["RateLimit"] == '"requests";r=0;t=10'
