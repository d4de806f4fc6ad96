"""Which gateways the region has, as the control plane tells it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from reelmesh.v1 import control_plane_service_pb2 as cp

# Of gateways that are gone: a lease may run out under one that still answers.
_REMEMBERED: Final = 64


class Gateways:
    """The region's live gateways, and where the others were last."""

    def __init__(self) -> None:
        self.heard = False
        """Whether a control plane has ever told which there are."""
        self._live: dict[str, cp.GatewayHello] = {}
        self._gone: OrderedDict[str, cp.GatewayHello] = OrderedDict()

    def take(self, response: cp.WatchFleetResponse) -> None:
        """Takes a message of WatchFleet."""
        match response.WhichOneof("message"):
            case "snapshot":
                self.replace(response.snapshot)
            case "delta":
                self.apply(response.delta)

    def replace(self, snapshot: cp.FleetSnapshot) -> None:
        """Takes a snapshot: those that are not in it are gone."""
        self.heard = True
        listed = {gateway.gateway_id for gateway in snapshot.gateways}
        for gateway_id in self._live.keys() - listed:
            self._leave(gateway_id)
        for gateway in snapshot.gateways:
            self._live[gateway.gateway_id] = gateway

    def apply(self, delta: cp.FleetDelta) -> None:
        """Takes a change."""
        for gateway in delta.upserted_gateways:
            self._live[gateway.gateway_id] = gateway
        for gateway_id in delta.removed_gateway_ids:
            self._leave(gateway_id)

    def _leave(self, gateway_id: str) -> None:
        gone = self._live.pop(gateway_id, None)
        if gone is None:
            return
        self._gone[gateway_id] = gone
        self._gone.move_to_end(gateway_id)
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def address_of(self, gateway_id: str, incarnation: str) -> str | None:
        """Where to ask for what a gateway owns in that life; None: that life is over.

        One whose lease ran out is asked where it was last: it may still answer.
        """
        hello = self._live.get(gateway_id) or self._gone.get(gateway_id)
        if hello is None or hello.incarnation != incarnation:
            return None
        return hello.peer_address or None
