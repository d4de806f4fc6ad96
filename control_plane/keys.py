"""Where everything lies in the store; nothing else spells a key.

    <prefix>/<region>/fleet/nodes/<node id>       NodeRecord, under the node's lease
    <prefix>/<region>/fleet/models/<sha256>       ModelInfo by the digest of its manifest,
                                                  under no lease: it never changes
    <prefix>/<region>/fleet/gateways/<gateway id> GatewayHello (lease_id 0), under the
                                                  gateway's lease
    <prefix>/<region>/jobs/records/<job id>       JobRecord, under no lease
    <prefix>/<region>/jobs/live/<digest>/<job id> JobRecord with its owner and reservation
                                                  alone, by tenant; there for as long as the
                                                  job has not ended, so that they are what a
                                                  tenant has running and reserved
    <prefix>/<region>/jobs/spent/<digest>/<day>/<gateway id>
                                                  QuotaSpent: GPU-seconds of a tenant's ended
                                                  jobs that the gateway owned
    <prefix>/<region>/jobs/tenants/<digest>/<job id>
                                                  empty: what ListJobs lists
    <prefix>/<region>/jobs/keys/<digest>          job id, by tenant and idempotency key
    <prefix>/<region>/jobs/expiry/<ms>/<job id>   empty: ended jobs by the end of their time
    <prefix>/<region>/owned/<id>                  JobRecord with the owner alone of a batch that
                                                  has not ended, or of a webhook (hook_<job or
                                                  batch id>) that is not delivered. Not
                                                  among the live jobs: those are what a
                                                  tenant's quota counts
    <prefix>/<region>/batches/records/<batch id>  BatchRecord, under no lease
    <prefix>/<region>/batches/{tenants,keys,expiry}/…
                                                  as those of jobs
    <prefix>/<region>/quotas/slots/<gateway id>   QuotaSlot: a place among those who enforce
                                                  limits; under no lease
    <prefix>/<region>/quotas/shares/<digest>/<gateway id>
                                                  QuotaShare, by tenant, under the gateway's
                                                  lease
    <prefix>/<region>/quotas-of-region/<rates or jobs>/{lease,parts/<digest>}
                                                  RegionLease and QuotaShare: the region's own
                                                  parts, written by its leader
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
    <prefix>/global/quotas/<rates or jobs>/{slots/<region>,shares/<digest>/<region>}
                                                  as those of gateways; of rates under the
                                                  region's lease, of jobs under none
    <prefix>/global/tenants/<digest>              TenantPolicy, under no lease
    <prefix>/global/models/versions/<name>/<version>
                                                  RegisteredModel, under no lease
    <prefix>/global/models/prefetches/<name>/<version>
                                                  PrefetchOrder, under no lease
    <prefix>/global/writers/<region>/<replica id>/<n>
                                                  slots, as above

Values are protobuf messages of reelmesh.v1, below 16 KiB each. Nodes, models
and gateways share the prefix ``fleet/``, so that one watch delivers them in the order of
their revisions: no node is seen before the models it names.
"""

from __future__ import annotations

import hashlib


class ShareKeys:
    """The keys of one tier of those who enforce limits: gateways, or regions."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.slots = base + "slots/"
        self.shares = base + "shares/"

    def slot(self, holder: str) -> str:
        """A holder's place."""
        return self.slots + holder

    def tenant_prefix(self, tenant: str) -> str:
        """Prefix of the parts of a tenant."""
        return f"{self.shares}{_digest(tenant)}/"

    def share(self, tenant: str, holder: str) -> str:
        """A holder's part of a tenant."""
        return self.tenant_prefix(tenant) + holder


class RegionPartKeys:
    """The keys of a region's own parts."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.lease = base + "lease"

    def part(self, tenant: str) -> str:
        """The region's part of a tenant."""
        return f"{self.base}parts/{_digest(tenant)}"


class Keys:
    """The keys of one region."""

    def __init__(self, *, prefix: str, region: str) -> None:
        base = f"{prefix.rstrip('/')}/{region}/"
        self.fleet = base + "fleet/"
        self.nodes = self.fleet + "nodes/"
        self.models = self.fleet + "models/"
        self.gateways = self.fleet + "gateways/"
        self.desired_states = base + "desired/"
        self.quotas = ShareKeys(base + "quotas/")
        self.region_rates = RegionPartKeys(base + "quotas-of-region/rates/")
        self.region_jobs = RegionPartKeys(base + "quotas-of-region/jobs/")
        jobs = base + "jobs/"
        self.job_records = jobs + "records/"
        self.live_jobs = jobs + "live/"
        self.spent = jobs + "spent/"
        self.job_expiries = jobs + "expiry/"
        self._tenant_jobs = jobs + "tenants/"
        self._job_keys = jobs + "keys/"
        self.owned_things = base + "owned/"
        batches = base + "batches/"
        self.batch_records = batches + "records/"
        self.batch_expiries = batches + "expiry/"
        self._tenant_batches = batches + "tenants/"
        self._batch_keys = batches + "keys/"
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

    def job(self, job_id: str) -> str:
        """A job's record."""
        return self.job_records + job_id

    def live_job(self, tenant: str, job_id: str) -> str:
        """Who owns a job that has not ended."""
        return self.tenants_live_jobs(tenant) + job_id

    def tenants_live_jobs(self, tenant: str) -> str:
        """Prefix of those of a tenant."""
        return f"{self.live_jobs}{_digest(tenant)}/"

    def spent_on(self, tenant: str, day: str) -> str:
        """Prefix of the GPU-seconds that a tenant has spent on a day, by gateway."""
        return f"{self.spent}{_digest(tenant)}/{day}/"

    def tenant_jobs(self, tenant: str) -> str:
        """Prefix of the ids of a tenant's jobs; a tenant's name may hold any character."""
        return f"{self._tenant_jobs}{_digest(tenant)}/"

    def job_key(self, tenant: str, idempotency_key: str) -> str:
        """Which job a tenant's idempotency key made."""
        return self._job_keys + _digest(f"{tenant}\0{idempotency_key}")

    def job_expiry(self, expires_at_ms: int, job_id: str) -> str:
        """An ended job by the end of its time; in order of time."""
        return f"{self.job_expiries}{expires_at_ms:015d}/{job_id}"

    def owned(self, thing_id: str) -> str:
        """Who owns a batch that has not ended, or a webhook."""
        return self.owned_things + thing_id

    def webhook(self, of: str) -> str:
        """Who delivers the webhook of an ended job or batch."""
        return self.owned(f"hook_{of}")

    def batch(self, batch_id: str) -> str:
        """A batch's record."""
        return self.batch_records + batch_id

    def tenant_batches(self, tenant: str) -> str:
        """Prefix of the ids of a tenant's batches."""
        return f"{self._tenant_batches}{_digest(tenant)}/"

    def batch_key(self, tenant: str, idempotency_key: str) -> str:
        """Which batch a tenant's idempotency key made."""
        return self._batch_keys + _digest(f"{tenant}\0{idempotency_key}")

    def batch_expiry(self, expires_at_ms: int, batch_id: str) -> str:
        """An ended batch by the end of its time; in order of time."""
        return f"{self.batch_expiries}{expires_at_ms:015d}/{batch_id}"

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


def _digest(text: str) -> str:
    """A name of fixed length for a text of any; 128 bits, since others may choose it."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class GlobalKeys:
    """The keys that all regions share."""

    def __init__(self, *, prefix: str) -> None:
        base = f"{prefix.rstrip('/')}/global/"
        self.regions = base + "regions/"
        self.summaries = self.regions + "summaries/"
        self.policies = self.regions + "policies/"
        self.superseded_jobs = self.regions + "superseded/"
        self.revocations = base + "revocations/"
        self.tenants = base + "tenants/"
        self.rates = ShareKeys(base + "quotas/rates/")
        self.jobs = ShareKeys(base + "quotas/jobs/")
        self.registry = base + "models/"
        self.model_versions = self.registry + "versions/"
        self.prefetches = self.registry + "prefetches/"
        self.departed_nodes = base + "departed/"
        self.histories = base + "history/"
        self.leader = base + "leader"
        self._writers = base + "writers/"

    def revocation(self, revocation_id: str) -> str:
        """Tokens that hold no more."""
        return self.revocations + revocation_id

    def tenant(self, tenant: str) -> str:
        """What a tenant may do; its name may hold any character."""
        return self.tenants + _digest(tenant)

    def model_version(self, name: str, version: str) -> str:
        """A registered version; neither may hold a slash."""
        return f"{self.model_versions}{name}/{version}"

    def prefetch(self, name: str, version: str) -> str:
        """That nodes should have a version."""
        return f"{self.prefetches}{name}/{version}"

    def summary(self, region: str, replica_id: str) -> str:
        """A replica's summary of its region."""
        return f"{self.summaries}{region}/{replica_id}"

    def superseded_job(self, job_id: str) -> str:
        """That a job's client goes on elsewhere; the id names the job's region."""
        return self.superseded_jobs + job_id

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
