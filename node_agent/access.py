"""Who may call a node: its region's gateways, control planes, and nodes for their weights."""

from __future__ import annotations

from typing import Final

from node_agent.service import SERVICE_NAME
from node_agent.weights_service import SERVICE_NAME as WEIGHTS_SERVICE_NAME
from reelkit.mtls.access import COMMON, AccessTable, Rule, service_rules
from reelkit.mtls.identity import Role

# Control planes run canaries.
_RUNS = Rule(frozenset({Role.GATEWAY, Role.CONTROL_PLANE}))

ACCESS: Final[AccessTable] = {
    **COMMON,
    **service_rules(
        SERVICE_NAME,
        {
            "Run": _RUNS,
            "Cancel": _RUNS,
            "Release": _RUNS,
            "Tickets": Rule(frozenset({Role.GATEWAY})),
            "WatchStatus": Rule(frozenset({Role.GATEWAY, Role.CONTROL_PLANE, Role.OPERATOR})),
        },
    ),
    **service_rules(WEIGHTS_SERVICE_NAME, {"ReadFile": Rule(frozenset({Role.NODE}))}),
}
