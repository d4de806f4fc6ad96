"""Which processes a mesh is made of: a pure plan, from options to commands and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reelmesh_cli.errors import UsageError

Role = Literal["etcd", "control-plane", "gateway", "node-agent"]

ISSUER = "reelmesh-local"
AUDIENCE = "reelmesh"
# What a person who pressed Ctrl-C waits for, at most, per kind of process.
DRAIN_S = 5.0

_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_MAX_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshOptions:
    """What was asked for."""

    regions: tuple[str, ...]
    nodes_per_region: int
    state_dir: Path
    """Absolute."""
    model_source: str
    """A folder or URL, as a node agent's ``model.source``."""
    model_manifest: str | None = None
    """Its ``model.manifest``, where the manifest lies apart from the weights."""
    threads: int
    """torch's threads in each worker; 0 leaves it to torch."""


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

    @property
    def log(self) -> str:
        """Path of its log, relative to the state folder."""
        return f"logs/{self.id}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAddresses:
    """Where a region is reached."""

    http: str
    grpc: str
    control_plane: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """A whole mesh."""

    options: MeshOptions
    etcd_url: str
    regions: dict[str, RegionAddresses]
    processes: tuple[ProcessPlan, ...]

    def of_role(self, *roles: Role) -> tuple[ProcessPlan, ...]:
        """The processes of these roles, in the plan's order."""
        return tuple(each for each in self.processes if each.role in roles)


def check_options(regions: str, nodes_per_region: int) -> tuple[str, ...]:
    """The regions of a comma list.

    Raises:
        UsageError: A name is not usable or repeated, or the number of nodes is not.
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
    if len(set(names)) != len(names):
        raise UsageError(f"--regions: a region is named twice in {regions!r}")
    if not 1 <= nodes_per_region <= _MAX_NODES:
        raise UsageError(
            f"--nodes-per-region must be 1 to {_MAX_NODES}, not {nodes_per_region}",
        )
    return names


def plan_mesh(options: MeshOptions, *, ports: Iterator[int], programs: Programs) -> MeshPlan:
    """Plans one etcd and, per region, a control plane, a gateway and node agents.

    Args:
        options: What was asked for.
        ports: Free ports, as many as are taken from it.
        programs: What is run.
    """
    etcd = _etcd(options, ports, programs)
    etcd_url = f"http://{etcd.address}"
    processes, regions = [etcd], {}
    for name in options.regions:
        control = _control_plane(options, name, ports, programs, etcd_url=etcd_url)
        gateway, http = _gateway(options, name, ports, programs, control=control.address)
        nodes = [
            _node(options, name, number, ports, programs, control=control.address)
            for number in range(options.nodes_per_region)
        ]
        processes += [control, gateway, *nodes]
        regions[name] = RegionAddresses(
            http=http, grpc=gateway.address, control_plane=control.address
        )
    return MeshPlan(options=options, etcd_url=etcd_url, regions=regions, processes=tuple(processes))


def _etcd(options: MeshOptions, ports: Iterator[int], programs: Programs) -> ProcessPlan:
    address = _address(ports)
    peer = f"http://{_address(ports)}"
    argv = (
        programs.etcd,
        "--name=local",
        f"--data-dir={options.state_dir / 'etcd'}",
        f"--listen-client-urls=http://{address}",
        f"--advertise-client-urls=http://{address}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        # etcd before 3.5.3, and PyPI's is 3.5.1, may lose an applied entry at a kill: it commits
        # the index of an entry apart from its data. A batch of one leaves hardly a moment for it.
        "--backend-batch-limit=1",
        "--log-level=warn",
    )
    return ProcessPlan(role="etcd", region=None, id="etcd", argv=argv, address=address)


def _control_plane(
    options: MeshOptions, region: str, ports: Iterator[int], programs: Programs, *, etcd_url: str
) -> ProcessPlan:
    address = _address(ports)
    replica_id = f"{region}-control-0"
    config: dict[str, Any] = {
        "listen": address,
        "region": region,
        "replica_id": replica_id,
        "etcd": {"endpoints": [etcd_url]},
        "drain_s": 1.0,
    }
    return _module(options, programs, "control-plane", "control_plane", replica_id, region, config)


def _gateway(
    options: MeshOptions, region: str, ports: Iterator[int], programs: Programs, *, control: str
) -> tuple[ProcessPlan, str]:
    grpc, http = _address(ports), _address(ports)
    gateway_id = f"{region}-gateway-0"
    folder = options.state_dir
    config = {
        "region": region,
        "gateway_id": gateway_id,
        "state_dir": str(folder / "gateways" / gateway_id),
        "grpc": {"listen": grpc},
        "http": {"listen": http},
        "auth": {
            "issuers": [
                {
                    "issuer": ISSUER,
                    "audience": AUDIENCE,
                    "jwks_file": str(folder / "keys" / "jwks.json"),
                }
            ]
        },
        "control_plane": {"endpoints": [control]},
        "artifacts": {"url": str(folder / "artifacts" / region)},
        "drain_s": DRAIN_S,
    }
    plan = _module(options, programs, "gateway", "gateway", gateway_id, region, config, grpc)
    return plan, f"http://{http}"


def _node(
    options: MeshOptions,
    region: str,
    number: int,
    ports: Iterator[int],
    programs: Programs,
    *,
    control: str,
) -> ProcessPlan:
    node_id = f"{region}-node-{number}"
    config = {
        "node_id": node_id,
        "region": region,
        "listen": _address(ports),
        "control_planes": [control],
        "model": {
            "source": options.model_source,
            "manifest": options.model_manifest,
            "cache_dir": str(options.state_dir / "weights-cache"),
        },
        "workers": {"threads": options.threads},
        "drain_timeout_s": DRAIN_S,
    }
    return _module(options, programs, "node-agent", "node_agent", node_id, region, config)


def _module(
    options: MeshOptions,
    programs: Programs,
    role: Role,
    module: str,
    process_id: str,
    region: str,
    config: dict[str, Any],
    address: str | None = None,
) -> ProcessPlan:
    config_file = options.state_dir / "config" / f"{process_id}.yaml"
    ready_file = options.state_dir / "run" / f"{process_id}.json"
    return ProcessPlan(
        role=role,
        region=region,
        id=process_id,
        argv=(programs.python, "-P", "-m", module, "--config", str(config_file)),
        address=address or config["listen"],
        config={**config, "ready_file": str(ready_file)},
        config_file=config_file,
        ready_file=ready_file,
    )


def _address(ports: Iterator[int]) -> str:
    return f"127.0.0.1:{next(ports)}"
