"""Which priority a job has: what it asks for, as far as its tenant may. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from reelmesh.v1 import tenant_pb2
from reelmesh.v1.tenant_pb2 import Priority

from gateway.errors import FieldViolation

INTERACTIVE: Final = tenant_pb2.PRIORITY_INTERACTIVE
BATCH: Final = tenant_pb2.PRIORITY_BATCH
UNSET: Final = tenant_pb2.PRIORITY_UNSPECIFIED

# The first to be served first.
ORDER: Final = (INTERACTIVE, BATCH)
BY_NAME: Final[Mapping[str, Priority.ValueType]] = MappingProxyType(
    {"interactive": INTERACTIVE, "batch": BATCH}
)
NAMES: Final[Mapping[Priority.ValueType, str]] = MappingProxyType(
    {value: name for name, value in BY_NAME.items()}
)


def rank(priority: Priority.ValueType) -> int:
    """0 for what is served first; a priority that nobody set is interactive."""
    return ORDER.index(priority) if priority in ORDER else 0


def priority_of(policy: tenant_pb2.TenantPolicy) -> Priority.ValueType:
    """The highest that a tenant may ask for, and has where it asks for none."""
    return ORDER[rank(policy.priority)]


def check_priority(
    asked: Priority.ValueType, policy: tenant_pb2.TenantPolicy
) -> list[FieldViolation]:
    """The rule that a wish breaks: it is one of two, and never above its tenant's."""
    if asked == UNSET:
        return []
    highest = rank(policy.priority)
    allowed = tuple(NAMES[each] for each in ORDER[highest:])
    if asked not in ORDER:
        return [FieldViolation("priority", f"must be {' or '.join(BY_NAME)}", allowed)]
    if rank(asked) < highest:
        rule = f"{NAMES[asked]} is above what this tenant may ask for"
        return [FieldViolation("priority", rule, allowed)]
    return []


def granted(asked: Priority.ValueType, policy: tenant_pb2.TenantPolicy) -> Priority.ValueType:
    """The priority of a job: as asked for, as far as its tenant may; its tenant's without."""
    if asked == UNSET:
        return priority_of(policy)
    return ORDER[max(rank(asked), rank(policy.priority))]
