"""Who may call PeerService: gateways, of every region, by their certificates."""

from __future__ import annotations

from typing import Final

from gateway.edge_grpc.peer_api import SERVICE_NAME
from reelkit.mtls.access import COMMON, AccessTable, Rule, service_rules
from reelkit.mtls.identity import Role

# What a peer says of tenant, subject and scopes is believed: no other role may say it.
_GATEWAY = Rule(frozenset({Role.GATEWAY}), any_region=True)

PEER_ACCESS: Final[AccessTable] = {
    **COMMON,
    **service_rules(
        SERVICE_NAME,
        {
            "CreatePeerVideo": _GATEWAY,
            "GetPeerVideo": _GATEWAY,
            "WatchPeerVideo": _GATEWAY,
            "CancelPeerVideo": _GATEWAY,
            "DeletePeerVideo": _GATEWAY,
            "DownloadPeerVideo": _GATEWAY,
            "LinkPeerVideo": _GATEWAY,
            "WatchLoad": _GATEWAY,
        },
    ),
}
