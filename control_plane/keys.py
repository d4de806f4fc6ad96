"""Where everything lies in the store; nothing else spells a key.

    <prefix>/<region>/fleet/nodes/<node id>       NodeRecord, under the node's lease
    <prefix>/<region>/fleet/models/<sha256>       ModelInfo by the digest of its manifest,
                                                  under no lease: it never changes
    <prefix>/<region>/gateways/<gateway id>       GatewayHello (lease_id 0), under the
                                                  gateway's lease
    <prefix>/<region>/desired/<node id>           DesiredNodeState, under no lease
    <prefix>/<region>/writers/<replica id>/<n>    slots of store.writer.FencedWriter

Values are protobuf messages of reelmesh.v1, below 16 KiB each. Nodes and models share
the prefix ``fleet/``, so that one watch delivers both in the order of their revisions:
no node is seen before the models it names.
"""

from __future__ import annotations


class Keys:
    """The keys of one region."""

    def __init__(self, *, prefix: str, region: str) -> None:
        base = f"{prefix.rstrip('/')}/{region}/"
        self.fleet = base + "fleet/"
        self.nodes = self.fleet + "nodes/"
        self.models = self.fleet + "models/"
        self.gateways = base + "gateways/"
        self.desired_states = base + "desired/"
        self._writers = base + "writers/"

    def node(self, node_id: str) -> str:
        """A node's record."""
        return self.nodes + node_id

    def model(self, manifest_sha256: str) -> str:
        """What a model version can do."""
        return self.models + manifest_sha256

    def gateway(self, gateway_id: str) -> str:
        """A gateway's record."""
        return self.gateways + gateway_id

    def desired(self, node_id: str) -> str:
        """What a node should be."""
        return self.desired_states + node_id

    def writer_slots(self, replica_id: str) -> str:
        """Prefix of a replica's slot keys."""
        return f"{self._writers}{replica_id}/"
