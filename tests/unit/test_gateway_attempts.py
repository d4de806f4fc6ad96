"""Attempts, seqs and ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs import attempts
from gateway.jobs.ids import VideoIds, region_of
from reelkit.clock import ManualClock


@given(epoch=st.integers(1, attempts.MAX_EPOCH), try_=st.integers(1, attempts.TRIES_PER_EPOCH - 1))
def test_an_ordinal_is_its_attempt_and_fits_the_wire(epoch, try_):
    ordinal = attempts.ordinal_of(epoch, try_)
    assert attempts.attempt_of(ordinal) == (epoch, try_)
    assert 1 <= ordinal < 2**32


@given(
    one=st.tuples(st.integers(1, 50), st.integers(1, 1023)),
    two=st.tuples(st.integers(1, 50), st.integers(1, 1023)),
    n=st.integers(0, attempts.TERMINAL_N),
)
def test_a_later_attempt_has_the_greater_seqs(one, two, n):
    first, second = attempts.ordinal_of(*one), attempts.ordinal_of(*two)
    assert (one < two) == (first < second)
    if one < two:
        assert attempts.seq_of(first, attempts.TERMINAL_N) < attempts.seq_of(second, 0)
    assert attempts.split_seq(attempts.seq_of(first, n)) == (first, n)
    assert attempts.seq_of(first, n) < 2**64


@pytest.mark.parametrize(("epoch", "try_"), [(0, 1), (1, 0), (1, 1024), (2**22, 1)])
def test_what_is_no_attempt_is_refused(epoch, try_):
    with pytest.raises(ValueError, match="is not in"):
        attempts.ordinal_of(epoch, try_)


async def test_ids_sort_by_time_and_name_their_region():
    clock = ManualClock(start_s=1_700_000_000.0)
    ids = VideoIds("eu-west", clock=clock)
    drawn = []
    for _ in range(50):
        drawn.extend(ids.draw() for _ in range(20))
        await clock.advance(0.001)
    assert drawn == sorted(set(drawn))
    assert {region_of(video_id) for video_id in drawn} == {"eu-west"}
    assert all(len(video_id) == len("eu-west-") + 26 for video_id in drawn)


async def test_a_clock_that_is_set_back_does_not_disorder_ids():
    clock = ManualClock(start_s=1_700_000_000.0)
    ids = VideoIds("ap", clock=clock)
    first = ids.draw()
    clock._now_s -= 3600
    assert ids.draw() > first


@pytest.mark.parametrize(
    "text", ["", "ap", "ap-1", "AP-01jd3x8z5q0e8m2c4r6t7v9wxy", "-01jd3x8z5q0e8m2c4r6t7v9wxy", "熊"]
)
def test_what_is_no_id_names_no_region(text):
    assert region_of(text) is None
