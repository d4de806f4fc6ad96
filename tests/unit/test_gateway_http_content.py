"""Ranges of a file, as RFC 9110 section 14 reads them."""

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge_http.content import ByteRange, parse_range

SIZES = st.integers(1, 10**12)


@given(SIZES, st.integers(0, 10**13), st.integers(0, 10**13))
def test_a_range_lies_inside_the_file_or_is_refused(total, first, last):
    header = f"bytes={first}-{last}"
    if last < first:
        assert parse_range(header, total=total) is None
    elif first >= total:
        with pytest.raises(web.HTTPRequestRangeNotSatisfiable) as raised:
            parse_range(header, total=total)
        assert raised.value.headers["Content-Range"] == f"bytes */{total}"
    else:
        assert parse_range(header, total=total) == ByteRange(first, min(last + 1, total))


@given(SIZES, st.integers(1, 10**13))
def test_a_suffix_is_the_end_of_the_file(total, suffix):
    assert parse_range(f"bytes=-{suffix}", total=total) == ByteRange(max(0, total - suffix), total)


@given(SIZES, st.text(max_size=40))
def test_whatever_else_is_sent_means_the_whole_file(total, text):
    try:
        found = parse_range(text, total=total)
    except web.HTTPRequestRangeNotSatisfiable:
        return
    if found is not None:
        assert 0 <= found.start < found.stop <= total
