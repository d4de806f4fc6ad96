"""Which address a call counts under, and how often it may come without a token that holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.config import StrangerConfig
from gateway.auth.strangers import MAX_ADDRESSES, Refusals, client_of, networks_of

PROXIES = networks_of(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        # Nobody's word is believed but the proxies'.
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        # What a client sends ahead of the proxy's own entry is its own invention.
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["nonsense"], "unknown"),
        ("fd00::1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", [], "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("fe80::1%eth0", [], "fe80::/64"),
        (None, [], "unknown"),
        ("", ["198.51.100.1"], "unknown"),
    ],
)
def test_the_address_that_a_call_counts_under(remote, forwarded, client):
    assert client_of(remote, forwarded, PROXIES) == client


@given(st.lists(st.text(max_size=40), max_size=30), st.text(max_size=40))
def test_whatever_is_sent_has_an_address(forwarded, remote):
    assert client_of(remote, forwarded, PROXIES)


def test_an_address_has_its_burst_and_gets_refusals_back():
    refusals = Refusals(per_s=2.0, burst=3)
    for _ in range(3):
        assert refusals.wait_s("a", 100.0) == 0
        refusals.charge("a", 100.0)
    assert refusals.wait_s("a", 100.0) == pytest.approx(0.5)
    assert refusals.wait_s("b", 100.0) == 0
    assert refusals.wait_s("a", 100.25) == pytest.approx(0.25)
    assert refusals.wait_s("a", 100.5) == 0
    refusals.charge("a", 100.5)
    # Never more than the burst, however long nothing comes.
    for _ in range(3):
        refusals.charge("a", 10_000.0)
    assert refusals.wait_s("a", 10_000.0) > 0


@given(st.lists(st.floats(0, 10), max_size=300), st.floats(0.1, 50), st.integers(1, 20))
def test_no_more_than_the_burst_and_the_rate_are_refused(gaps_s, per_s, burst):
    refusals = Refusals(per_s=per_s, burst=burst)
    now_s, refused = 0.0, 0
    for gap_s in gaps_s:
        now_s += gap_s
        if refusals.wait_s("a", now_s) <= 0:
            refusals.charge("a", now_s)
            refused += 1
    assert refused <= burst + per_s * now_s + 1e-6


def test_many_addresses_take_bounded_memory():
    refusals = Refusals(per_s=1.0, burst=1)
    for number in range(MAX_ADDRESSES + 10):
        refusals.charge(f"a{number}", 0.0)
    assert len(refusals._buckets) == MAX_ADDRESSES
    assert refusals.wait_s("a0", 0.0) == 0
    assert refusals.wait_s(f"a{MAX_ADDRESSES + 9}", 0.0) > 0


def test_a_proxy_that_is_no_network_is_refused():
    with pytest.raises(ValueError, match="nowhere"):
        StrangerConfig(trusted_proxies=("nowhere",))
