"""Configuration of a control plane; the only place that reads it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from control_plane.health.config import HealthSettings
from control_plane.operator.config import OperatorSettings
from control_plane.quotas.config import QuotaSettings
from control_plane.store.etcd import EtcdSettings
from reelkit.logs import LogSettings
from reelkit.loopback import is_loopback
from reelkit.mtls.config import ALLOW_PLAINTEXT, MutualTlsSettings, refuse_plaintext
from reelkit.settings import Address, Settings

ENV_PREFIX = "REELMESH_CONTROL__"
_ID = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"


def _host_id() -> str:
    name = socket.gethostname().split(".")[0].lower()
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-")
    return kept[:63].strip("-") or "control"


class FleetSettings(Settings):
    """How WatchFleet is served."""

    heartbeat_s: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="Seconds between proofs of life on a quiet WatchFleet stream; a gateway "
        "tries another replica after three missing ones.",
    )
    resnapshot_s: float = Field(
        default=300.0,
        ge=1,
        description="Seconds after which a watcher gets the whole fleet again, so that "
        "whatever went wrong heals; 300 s cost nothing at 5,000 nodes.",
    )
    relist_s: float = Field(
        default=300.0,
        ge=1,
        description="Seconds after which the store is read whole and compared.",
    )


class ElectionSettings(Settings):
    """How the replicas of a region elect a leader among them."""

    ttl_s: float = Field(
        default=5.0,
        ge=2,
        le=60,
        description="Seconds of the leader's lease: how long nobody leads after a leader died "
        "without a word. Histories wait for it and nothing else does; below 2 s etcd cannot go.",
    )


class ControlPlaneConfig(Settings):
    """The whole configuration."""

    listen: Address = Field(
        default="127.0.0.1:7200",
        description="host:port of the gRPC listener; port 0 takes a free one. Loopback by "
        "default; others need mtls.",
    )
    mtls: MutualTlsSettings | None = Field(
        default=None,
        description="The certificate that this replica shows to nodes and gateways, and the "
        "authorities that it believes. Without it they speak plain text, on this host alone.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Speak plain text with parts on other hosts where mtls is not given: only "
        "where something else, such as a service mesh, encrypts and checks who calls. Off, since "
        "whoever reaches the listener can change the region's records.",
    )
    region: str = Field(
        pattern=_ID, description="The region this control plane serves; others are refused."
    )
    replica_id: str = Field(
        default_factory=_host_id,
        pattern=_ID,
        description="Name of this replica, unique in its region; the host's name by default.",
    )
    etcd: EtcdSettings = Field(default=EtcdSettings(), description="The regional etcd.")
    global_etcd: EtcdSettings | None = Field(
        default=None,
        description="The etcd that all regions share, for their summaries and the operators' "
        "intent; the regional one by default, which is right for a single region.",
    )
    lease_ttl_s: float = Field(
        default=10.0,
        ge=2,
        le=300,
        description="Seconds without a report after which a node or gateway is taken out. "
        "Agents report at least every third of it. 10 s outlasts a raft election and a "
        "restart of a replica; below 2 s etcd cannot go.",
    )
    ready_file: Path | None = Field(
        default=None,
        description="Written with address and pid as JSON when the service is ready.",
    )
    metrics_listen: Address | None = Field(
        default=None,
        description="host:port that serves Prometheus /metrics; off by default.",
    )
    reflection: bool = Field(
        default=True, description="Serve gRPC reflection, for grpcurl and its kin."
    )
    drain_s: float = Field(
        default=3.0,
        ge=0,
        le=60,
        description="Seconds that streams have to end when the process stops; agents move "
        "to another replica in that time and keep their leases.",
    )
    fleet: FleetSettings = Field(default=FleetSettings(), description="How the fleet is served.")
    health: HealthSettings = Field(default=HealthSettings(), description="How nodes are judged.")
    election: ElectionSettings = Field(
        default=ElectionSettings(), description="How a leader is elected."
    )
    quotas: QuotaSettings = Field(
        default=QuotaSettings(), description="How tenants' limits are divided."
    )
    operator: OperatorSettings = Field(
        default=OperatorSettings(), description="The listener that reelctl calls."
    )
    log: LogSettings = Field(default=LogSettings(), description="Logging.")

    @model_validator(mode="after")
    def _no_plain_text_between_hosts(self) -> Self:
        if self.allow_plaintext:
            return self
        if self.mtls is None:
            refuse_plaintext((("listen", self.listen),))
        for field, etcd in (("etcd", self.etcd), ("global_etcd", self.global_etcd)):
            for url in etcd.endpoints if etcd is not None else ():
                if url.startswith("http://") and not is_loopback(urlsplit(url).netloc):
                    raise ValueError(
                        f"{field}.endpoints {url}: between hosts etcd is spoken to by https, with "
                        f"{field}.ca, .cert and .key (docs/tls.md); or set {ALLOW_PLAINTEXT}: true "
                        "where something else encrypts and checks who calls"
                    )
        return self

    @field_validator("lease_ttl_s")
    @classmethod
    def _whole_seconds(cls, value: float) -> float:
        if value != int(value):
            raise ValueError(f"etcd counts whole seconds: use {int(value)} or {int(value) + 1}")
        return value
