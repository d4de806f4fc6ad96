"""Which addresses and URLs may be called on a client's word. Pure.

Only what the whole internet can reach: nothing of this host, of its networks, or that only
seems to be elsewhere (an IPv4 address inside an IPv6 one).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gateway.errors import FieldViolation

MAX_URL_CHARS: Final = 2_048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Public by their numbers to some, and answered by a cloud's own machines (168.63.129.16,
# 192.0.0.192) or kept for protocols.
_SPECIAL: Final = (
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
)
_NAT64: Final = (
    ipaddress.ip_network("64:ff9b::/96"),
    ipaddress.ip_network("64:ff9b:1::/48"),
)
# Of IPv4 addresses written as IPv6, long out of use.
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def refused_because(text: str) -> str:
    """Why an address is not called, "" where it may be."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "it is no address"
    return _refused(address)


def _refused(address: Address) -> str:
    inner = _inside(address)
    if inner is not None:
        return _refused(inner)
    if address.is_multicast:
        return "it is a multicast address"
    if any(address in network for network in _SPECIAL):
        return "it is kept for other uses"
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address.scope_id):
        return "it is not public"
    # Private, loopback, link-local (169.254.169.254 too), carrier-grade NAT, reserved, unset.
    if not address.is_global or address.is_reserved:
        return "it is not public"
    return ""


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlRules:
    """What a URL must be."""

    enabled: bool = False
    allow_http: bool = False
    allow_private: bool = False
    ports: Sequence[int] = (443,)
    hosts: Sequence[str] = ()

    def wrong_with(self, url: str) -> str:
        """The rule that a URL breaks, "" where it may be called.

        A name is looked up when it is called, and what it means then is held against
        :func:`refused_because`.
        """
        if not self.enabled:
            return "is not taken here: webhooks are off in this mesh"
        if len(url) > MAX_URL_CHARS:
            return f"must be at most {MAX_URL_CHARS} characters, not {len(url)}"
        if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            return "must be visible ASCII without spaces; encode what is not"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return "is no URL"
        return self._wrong_with_parts(parts, port)

    def check(self, url: str) -> list[FieldViolation]:
        """The violation of a request's ``webhook_url``, none where it has none."""
        wrong = self.wrong_with(url) if url else ""
        return [FieldViolation("webhook_url", wrong)] if wrong else []

    def _wrong_with_parts(self, parts: SplitResult, port: int | None) -> str:
        schemes = ("https", "http") if self.allow_http else ("https",)
        if parts.scheme not in schemes:
            return f"must begin with {' or '.join(f'{each}://' for each in schemes)}"
        if "@" in parts.netloc or "\\" in parts.netloc:
            return "must hold no user name or password"
        if parts.fragment:
            return "must hold no fragment"
        host = (parts.hostname or "").rstrip(".")
        if not host:
            return "must name a host"
        used = port if port is not None else {"https": 443, "http": 80}[parts.scheme]
        if self.ports and used not in self.ports:
            return f"must name port {', '.join(map(str, self.ports))}, not {used}"
        if self.hosts and not any(_matches(host, each.lower()) for each in self.hosts):
            return "must name a host that the operators allow"
        return self._wrong_with_host(host)

    def _wrong_with_host(self, host: str) -> str:
        # Numbers alone, such as 2130706433 or 0177.0.0.1, are addresses to some, names to none.
        if ":" in host or host.replace(".", "").isdigit():
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                return "must name a host, or an address as it is usually written"
            why = "" if self.allow_private else _refused(address)
            return f"must not name that address: {why}" if why else ""
        return ""


def _matches(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:])
    return host == allowed
