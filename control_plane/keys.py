"""Where everything lies in the store; nothing else spells a key.

    <prefix>/<region>/fleet/nodes/<node id>       NodeRecord, under the node's lease
    <prefix>/<region>/fleet/models/<sha256>       ModelInfo by the digest of its manifest,
                                                  under no lease: it never changes
    <prefix>/<region>/gateways/<gateway id>       GatewayHello (lease_id 0), under the
                                                  gateway's lease
    <prefix>/<region>/desired/<node id>           DesiredNodeState, under no lease
    <prefix>/<region>/departed/<node id>          NodeRecord of a node that is gone, with why;
                                                  under no lease, removed when it is back
    <prefix>/<region>/history/<node id>           NodeHistory, under no lease
    <prefix>/<region>/leader                      who leads; see control_plane.election
    <prefix>/<region>/writers/<replica id>/<n>    slots of store.writer.FencedWriter

In the global store, which may be the same etcd:

    <prefix>/global/regions/summaries/<region>/<replica id>
                                                  RegionSummary, under the replica's lease
    <prefix>/global/regions/policies/<region>     RegionPolicy, under no lease
    <prefix>/global/writers/<region>/<replica id>/<n>
                                                  slots, as above

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
        self.departed_nodes = base + "departed/"
        self.histories = base + "history/"
        self.leader = base + "leader"
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

    def departed(self, node_id: str) -> str:
        """What is left of a node that is gone."""
        return self.departed_nodes + node_id

    def history(self, node_id: str) -> str:
        """How a node's state changed."""
        return self.histories + node_id

    def writer_slots(self, replica_id: str) -> str:
        """Prefix of a replica's slot keys."""
        return f"{self._writers}{replica_id}/"


class GlobalKeys:
    """The keys that all regions share."""

    def __init__(self, *, prefix: str) -> None:
        base = f"{prefix.rstrip('/')}/global/"
        self.regions = base + "regions/"
        self.summaries = self.regions + "summaries/"
        self.policies = self.regions + "policies/"
        self.departed_nodes = base + "departed/"
        self.histories = base + "history/"
        self.leader = base + "leader"
        self._writers = base + "writers/"

    def summary(self, region: str, replica_id: str) -> str:
        """A replica's summary of its region."""
        return f"{self.summaries}{region}/{replica_id}"

    def policy(self, region: str) -> str:
        """What operators want of a region."""
        return self.policies + region

    def departed(self, node_id: str) -> str:
        """What is left of a node that is gone."""
        return self.departed_nodes + node_id

    def history(self, node_id: str) -> str:
        """How a node's state changed."""
        return self.histories + node_id

    def writer_slots(self, region: str, replica_id: str) -> str:
        """Prefix of a replica's slot keys; replica ids are unique in their region alone."""
        return f"{self._writers}{region}/{replica_id}/"
