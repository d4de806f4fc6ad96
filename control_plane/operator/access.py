"""Which scope each method asks for: one table, and what is not in it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from reelmesh.v1 import operator_service_pb2 as op

from control_plane.errors import PermissionDeniedError
from reelkit.mtls.access import COMMON, AccessTable, Rule, service_rules
from reelkit.mtls.identity import Role


class Scope(StrEnum):
    """What an operator's token may be good for."""

    READ = "fleet:read"
    OPERATE = "fleet:operate"


class UnlistedMethodError(LookupError):
    """A method that the table does not name: the listener does not start."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who calls."""

    subject: str
    scopes: frozenset[str]


ACCESS: Mapping[str, Scope] = MappingProxyType(
    {
        "ListNodes": Scope.READ,
        "ListGateways": Scope.READ,
        "ListNodeEvents": Scope.READ,
        "SetNodePolicy": Scope.OPERATE,
        "ListRegions": Scope.READ,
        "SetRegionPolicy": Scope.OPERATE,
        "RevokeTokens": Scope.OPERATE,
        "ListRevocations": Scope.READ,
        "RestoreTokens": Scope.OPERATE,
        "ListTenants": Scope.READ,
        "GetTenant": Scope.READ,
        "SetTenant": Scope.OPERATE,
        "UnsetTenant": Scope.OPERATE,
        "GetTenantUsage": Scope.READ,
        "ListRegisteredModels": Scope.READ,
        "GetRegisteredModel": Scope.READ,
        "RegisterModel": Scope.OPERATE,
        "SetModelState": Scope.OPERATE,
        "ListPrefetches": Scope.READ,
        "SetPrefetch": Scope.OPERATE,
        "UnsetPrefetch": Scope.OPERATE,
    }
)


LISTENER_ACCESS: AccessTable = MappingProxyType(
    {
        **COMMON,
        **service_rules(
            op.DESCRIPTOR.services_by_name["OperatorService"].full_name,
            dict.fromkeys(ACCESS, Rule(frozenset({Role.OPERATOR}), any_region=True)),
        ),
    }
)
"""Who may call at all, where callers show certificates; tokens come on top."""


def required_scope(method: str) -> Scope:
    """The scope that a method of OperatorService asks for.

    Raises:
        UnlistedMethodError: The table does not name it: nobody may call it.
    """
    try:
        return ACCESS[method]
    except KeyError:
        raise UnlistedMethodError(f"OperatorService/{method} is not in the access table") from None


def require(operator: Operator, scope: Scope) -> None:
    """Lets an operator with the scope pass.

    Raises:
        PermissionDeniedError: Names the scope that the token lacks.
    """
    if scope.value not in operator.scopes:
        raise PermissionDeniedError(
            f"the token lacks the scope {scope.value}; ask for one that has it"
        )
