"""How often an address may come without a token that holds. Pure; time is passed in.

A signature costs a fifth of a millisecond to check, and anybody can ask for it. Each address has
a bucket of refusals; while it is empty, only tokens that are known to hold are looked at.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Of 20,000 addresses the longest unheard is forgotten; some 200 bytes each.
MAX_ADDRESSES: Final = 20_000
# One customer's line has at least so many IPv6 addresses.
_V6_PREFIX: Final = 64
# A list from a client may be as long as a header; only its end is looked at.
_MAX_HOPS: Final = 16
_UNKNOWN: Final = "unknown"


class Refusals:
    """A token bucket for each address.

    Args:
        per_s: How many refusals a second an address gets back.
        burst: How many it has at first, and at most.
    """

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        # Refusals left, and when that was so; the longest unheard first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until the address may be refused again; 0: now."""
        return max((1.0 - self._left(address, now_s)) / self._per_s, 0.0)

    def charge(self, address: str, now_s: float) -> None:
        """Counts a refusal."""
        self._buckets[address] = (max(self._left(address, now_s) - 1.0, 0.0), now_s)
        self._buckets.move_to_end(address)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)

    def _left(self, address: str, now_s: float) -> float:
        left, then_s = self._buckets.get(address, (float(self._burst), now_s))
        return min(left + (now_s - then_s) * self._per_s, float(self._burst))


def networks_of(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks of ``10.0.0.0/8`` and single addresses.

    Raises:
        ValueError: One is none.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)


def client_of(remote: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a call is counted under.

    Args:
        remote: Of the connection, as the transport has it.
        forwarded: Values of X-Forwarded-For, in their order.
        trusted: The proxies whose word is believed. Their list is read from its end, up to the
            first address that is none of them: what stands before it anybody can make up.
    """
    address = _parsed(remote)
    hops = [hop for value in forwarded[-_MAX_HOPS:] for hop in value.split(",")[-_MAX_HOPS:]]
    while address is not None and hops and any(address in network for network in trusted):
        address = _parsed(hops.pop())
    if address is None:
        return _UNKNOWN
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))
    return str(address)


def is_in(remote: str | None, networks: Sequence[Network]) -> bool:
    """Whether a connection's address is of one of the networks."""
    address = _parsed(remote)
    return address is not None and any(address in network for network in networks)


def _parsed(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((text or "").strip().partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
