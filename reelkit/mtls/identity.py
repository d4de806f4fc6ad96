"""Who a part is: ``spiffe://reelmesh/<region>/<role>/<id>``, and the host names that go with it.

A server tells a caller by the one URI in its certificate. A client cannot: grpc compares
host names alone. So each certificate also names its role and region as a host,
``<role>.<region>.reelmesh.internal``, and a channel to a part demands that name whatever
address it connects to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TRUST_DOMAIN: Final = "reelmesh"
_NAMES_BELOW: Final = "reelmesh.internal"

_REGION: Final = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_ID: Final = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Role(StrEnum):
    """What a part is."""

    GATEWAY = "gateway"
    NODE = "node"
    CONTROL_PLANE = "control-plane"
    OPERATOR = "operator"


_URI: Final = re.compile(
    rf"spiffe://{TRUST_DOMAIN}/({_REGION})/({'|'.join(map(re.escape, Role))})/({_ID})"
)


class IdentityError(ValueError):
    """A certificate names nobody of this mesh; the message says what it should name."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One part of the mesh, or an operator.

    Raises:
        IdentityError: A region or an id that no certificate can name.
    """

    region: str
    role: Role
    id: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_REGION, self.region):
            raise IdentityError(
                f"region {self.region[:80]!r}: use 1 to 32 of a-z, 0-9 and '-', a letter or digit "
                "at both ends"
            )
        if not re.fullmatch(_ID, self.id):
            raise IdentityError(
                f"id {self.id[:80]!r}: use 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or "
                "digit at both ends"
            )

    @property
    def uri(self) -> str:
        """As certificates have it."""
        return f"spiffe://{TRUST_DOMAIN}/{self.region}/{self.role}/{self.id}"

    @property
    def server_names(self) -> tuple[str, ...]:
        """Host names that its certificate holds besides, for clients that call it."""
        names = [server_name(self.role, region=self.region)]
        if _LABEL.fullmatch(self.id):
            names.append(server_name(self.role, region=self.region, id=self.id))
        return tuple(names)

    def __str__(self) -> str:
        return f"{self.role} {self.id} of region {self.region}"


def server_name(role: Role, *, region: str, id: str = "") -> str:  # noqa: A002 - as everywhere
    """The host name that a channel to such a part demands; with an id, to that very one."""
    return f"{id}{'.' if id else ''}{role}.{region}.{_NAMES_BELOW}"


def parse_identity(uri: str) -> Identity:
    """The identity that a URI is, character by character.

    Raises:
        IdentityError: It is none of this mesh's.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise IdentityError(
            f"{uri[:200]!r} is not spiffe://{TRUST_DOMAIN}/<region>/<role>/<id> with a role of "
            f"{', '.join(Role)}"
        )
    return Identity(found[1], Role(found[2]), found[3])


def identity_of(uris: Iterable[str]) -> Identity:
    """The identity of a certificate that holds these URIs.

    Raises:
        IdentityError: Not exactly one, or one that is no identity.
    """
    found = tuple(uris)
    if len(found) != 1:
        count = "no URI" if not found else f"{len(found)} URIs"
        raise IdentityError(f"the certificate names {count}; an identity is exactly one")
    return parse_identity(found[0])
