"""Which processes a mesh is made of: a pure plan, from options to commands and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from reelmesh_cli.errors import UsageError
from reelmesh_cli.mesh.certificates import CertificatePlan, TlsFiles

Role = Literal["etcd", "fork-server", "control-plane", "gateway", "node-agent"]
EtcdLayout = Literal["shared", "separate"]

ISSUER = "reelmesh-local"
AUDIENCE = "reelmesh"
# What a person who pressed Ctrl-C waits for, at most, per kind of process.
DRAIN_S = 5.0

GLOBAL: Final = "global"
"""Name of the etcd cluster that all regions share, and so no region's."""

_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_MAX_NODES = 64
_MAX_REPLICAS = 8
_MEMBERS = (1, 3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshOptions:
    """What was asked for."""

    regions: tuple[str, ...]
    nodes_per_region: int
    gateways_per_region: int = 1
    control_planes_per_region: int = 1
    etcd: EtcdLayout = "shared"
    """One etcd for everything, or one for each region and a global one besides."""
    etcd_members: Mapping[str, int] = field(default_factory=dict)
    """Members of a cluster, by region or :data:`GLOBAL`; 1 where nothing is said."""
    state_dir: Path
    """Absolute."""
    model_source: str
    """A folder or URL, as a node agent's ``model.source``."""
    model_manifest: str | None = None
    """Its ``model.manifest``, where the manifest lies apart from the weights."""
    threads: int
    """torch's threads in each worker; 0 leaves it to torch."""
    tls: bool = False
    """Everything is encrypted, and every part shows who it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What is run."""

    python: str
    etcd: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process."""

    role: Role
    region: str | None
    id: str
    argv: tuple[str, ...]
    address: str
    """host:port where it is reached by gRPC (etcd: its client port)."""
    config: dict[str, Any] | None = field(default=None, hash=False)
    """Its settings file; etcd has flags alone."""
    config_file: Path | None = None
    ready_file: Path | None = None
    addresses: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Its other addresses by their name in ``mesh.json``, such as ``http``."""
    called_with: TlsFiles | None = None
    """What ``reelmesh up`` shows and believes when it calls it; None: plain text."""

    @property
    def log(self) -> str:
        """Path of its log, relative to the state folder."""
        return f"logs/{self.id}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAddresses:
    """Where a region is reached; the first of each where there are several."""

    http: str
    grpc: str
    control_plane: str
    operator: str
    """Where ``reelctl`` asks."""
    gateways: tuple[Mapping[str, str], ...]
    """id, grpc and http of each gateway."""
    control_planes: tuple[Mapping[str, str], ...]
    """id and address of each replica."""
    etcd: tuple[str, ...]
    """URLs of the region's etcd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """A whole mesh."""

    options: MeshOptions
    etcd_urls: tuple[str, ...]
    """Of the etcd that all regions share."""
    regions: dict[str, RegionAddresses]
    processes: tuple[ProcessPlan, ...]
    certificates: tuple[CertificatePlan, ...] = ()
    ca: Path | None = None
    """What clients and operators believe; None: they are spoken to in plain text."""

    def of_role(self, *roles: Role) -> tuple[ProcessPlan, ...]:
        """The processes of these roles, in the plan's order."""
        return tuple(each for each in self.processes if each.role in roles)


def check_options(
    regions: str,
    nodes_per_region: int,
    *,
    gateways_per_region: int = 1,
    control_planes_per_region: int = 1,
) -> tuple[str, ...]:
    """The regions of a comma list.

    Raises:
        UsageError: A name is not usable or repeated, or a number is out of bounds.
    """
    names = tuple(name.strip() for name in regions.split(",") if name.strip())
    if not names:
        raise UsageError("--regions names no region", hint="try --regions ap,eu")
    for name in names:
        if not _REGION.fullmatch(name):
            raise UsageError(
                f"--regions: {name!r} is no region name",
                hint="use 1 to 32 of a-z, 0-9 and '-', a letter or digit at both ends",
            )
    if GLOBAL in names:
        raise UsageError(f"--regions: {GLOBAL!r} is the name of what all regions share")
    if len(set(names)) != len(names):
        raise UsageError(f"--regions: a region is named twice in {regions!r}")
    for option, number, limit in (
        ("--nodes-per-region", nodes_per_region, _MAX_NODES),
        ("--gateways-per-region", gateways_per_region, _MAX_REPLICAS),
        ("--control-planes-per-region", control_planes_per_region, _MAX_REPLICAS),
    ):
        if not 1 <= number <= limit:
            raise UsageError(f"{option} must be 1 to {limit}, not {number}")
    return names


def check_etcd(layout: str, members: str, *, regions: tuple[str, ...]) -> dict[str, int]:
    """Members by cluster, of ``3`` (each cluster) or ``global=3,ap=1``.

    Raises:
        UsageError: The layout, a cluster or a number is none that there is.
    """
    if layout not in ("shared", "separate"):
        raise UsageError(f"--etcd must be shared or separate, not {layout!r}")
    clusters = (GLOBAL, *regions) if layout == "separate" else (GLOBAL,)
    found: dict[str, int] = {}
    for text in (part.strip() for part in members.split(",") if part.strip()):
        name, equals, number = text.rpartition("=")
        if equals and name not in clusters:
            raise UsageError(
                f"--etcd-members: there is no etcd {name!r}", hint=f"use {', '.join(clusters)}"
            )
        if not number.isdigit() or int(number) not in _MEMBERS:
            raise UsageError(
                f"--etcd-members: a cluster has 1, 3 or 5 members, not {number!r}",
                hint="such as --etcd-members 3 or --etcd-members global=3",
            )
        found.update(dict.fromkeys((name,) if equals else clusters, int(number)))
    return found
