"""The bound on bytes a second holds over every span of time."""

from hypothesis import given
from hypothesis import strategies as st

from node_agent.bandwidth import TokenBucket

draws = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5_000)), min_size=1, max_size=60)


@given(st.floats(10, 10_000), draws)
def test_no_span_sees_more_than_the_rate_a_second_more_and_one_draw(rate, told):
    bucket, now_s, gone = TokenBucket(rate, now_s=0.0), 0.0, []
    for pause_s, count in told:
        now_s += pause_s
        gone.append((now_s + bucket.draw(count, now_s=now_s), count))
    for begin, (begin_s, _) in enumerate(gone):
        for end in range(begin, len(gone)):
            end_s = gone[end][0]
            total = sum(count for _, count in gone[begin : end + 1])
            largest = max(count for _, count in gone[begin : end + 1])
            assert total <= rate * (end_s - begin_s + 1) * (1 + 1e-9) + largest + 1e-6


@given(st.floats(10, 10_000), draws)
def test_nobody_waits_longer_than_what_was_drawn_takes(rate, told):
    bucket, now_s, total = TokenBucket(rate, now_s=0.0), 0.0, 0
    for pause_s, count in told:
        now_s += pause_s
        assert bucket.draw(count, now_s=now_s) <= total / rate + 1e-6
        total += count


def test_without_a_rate_nobody_waits():
    bucket = TokenBucket(None, now_s=0.0)
    assert bucket.draw(10**12, now_s=0.0) == 0.0
