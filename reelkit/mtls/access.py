"""Which part may call which method: the decision, without a transport.

Each listener has one table by full method name. What is not in it nobody may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from reelkit.mtls.identity import Identity, Role


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a method."""

    roles: frozenset[Role]
    any_region: bool = False
    """Parts of other regions too."""
    claim: str = ""
    """Field of a request that must be the caller's own id, such as ``hello.node_id``; a request
    that lacks the message around it claims nothing."""


AccessTable = Mapping[str, Rule]
"""Rules by full method name, such as ``/reelmesh.v1.NodeService/Run``."""

_HEALTH = Rule(frozenset(Role), any_region=True)
_REFLECTION = Rule(frozenset({Role.OPERATOR}))

COMMON: Final[AccessTable] = {
    # Anybody of the mesh may ask whether a part serves.
    "/grpc.health.v1.Health/Check": _HEALTH,
    "/grpc.health.v1.Health/Watch": _HEALTH,
    "/grpc.health.v1.Health/List": _HEALTH,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTION,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _REFLECTION,
}
"""What every internal listener may serve besides."""


def service_rules(service: str, rules: Mapping[str, Rule]) -> AccessTable:
    """A table of one service's methods by their short names."""
    return {f"/{service}/{method}": rule for method, rule in rules.items()}


def refusal(rule: Rule, caller: Identity, *, region: str) -> str | None:
    """Why a caller may not call a method here, or None where it may."""
    if caller.role not in rule.roles:
        return f"needs a certificate of role {' or '.join(sorted(rule.roles))}"
    if caller.region != region and not rule.any_region:
        return f"needs a certificate of region {region}"
    return None


def false_claim(rule: Rule, caller: Identity, request: Any) -> str | None:
    """Why a request says that it is another's, or None where it is the caller's own."""
    if not rule.claim:
        return None
    *messages, field = rule.claim.split(".")
    for name in messages:
        if not request.HasField(name):
            return None
        request = getattr(request, name)
    claimed: str = getattr(request, field)
    if claimed == caller.id:
        return None
    return f"{rule.claim} is {claimed[:80]!r}, which needs a certificate of that id"
