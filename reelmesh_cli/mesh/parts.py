"""The processes of a plan, one by one: commands, settings and addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reelkit.mtls import identity
from reelmesh_cli.mesh.certificates import UP, CertificateBook, TlsFiles
from reelmesh_cli.mesh.topology import (
    AUDIENCE,
    DRAIN_S,
    GLOBAL,
    ISSUER,
    MeshOptions,
    MeshPlan,
    ProcessPlan,
    Programs,
    RegionAddresses,
    Role,
)

# Linux takes 107 bytes, macOS 103, and the server binds a name of the same length first.
_MAX_SOCKET_PATH = 100


def plan_mesh(options: MeshOptions, *, ports: Iterator[int], programs: Programs) -> MeshPlan:
    """Plans the etcds and, per region, control planes, gateways and node agents.

    Args:
        options: What was asked for.
        ports: Free ports, as many as are taken from it.
        programs: What is run.
    """
    parts = _Parts(options, ports, programs)
    processes = parts.etcd(GLOBAL)
    shared = parts.urls(processes)
    processes += parts.fork_server()
    regions = {}
    for name in options.regions:
        own = parts.etcd(name) if options.etcd == "separate" else []
        etcd = parts.urls(own) or shared
        controls = [
            parts.control_plane(name, number, etcd=etcd, shared=shared)
            for number in range(options.control_planes_per_region)
        ]
        addresses = [each.address for each in controls]
        gateways = [
            parts.gateway(name, number, controls=addresses)
            for number in range(options.gateways_per_region)
        ]
        nodes = [
            parts.node(name, number, controls=addresses)
            for number in range(options.nodes_per_region)
        ]
        processes += [*own, *controls, *gateways, *nodes]
        regions[name] = RegionAddresses(
            http=gateways[0].addresses["http"],
            grpc=gateways[0].address,
            control_plane=addresses[0],
            operator=controls[0].addresses["operator"],
            gateways=tuple(
                {"id": each.id, "grpc": each.address, **each.addresses} for each in gateways
            ),
            control_planes=tuple(
                {"id": each.id, "address": each.address, **each.addresses} for each in controls
            ),
            etcd=etcd,
        )
    return MeshPlan(
        options=options,
        etcd_urls=shared,
        regions=regions,
        processes=tuple(processes),
        certificates=parts.certificates.plans,
        ca=parts.certificates.ca,
    )


class _Parts:
    """Makes the plans of single processes."""

    def __init__(self, options: MeshOptions, ports: Iterator[int], programs: Programs) -> None:
        self.certificates = CertificateBook(options.state_dir, enabled=options.tls)
        self._options = options
        self._ports = ports
        self._programs = programs

    def urls(self, etcds: Sequence[ProcessPlan]) -> tuple[str, ...]:
        """Client URLs."""
        return tuple(self.certificates.url(each.address) for each in etcds)

    def etcd(self, cluster: str) -> list[ProcessPlan]:
        """The members of a cluster."""
        members = self._options.etcd_members.get(cluster, 1)
        if self._options.etcd == "shared":
            names = [f"etcd-{n}" for n in range(members)] if members > 1 else ["etcd"]
        else:
            names = [f"{cluster}-etcd-{number}" for number in range(members)]
        peers = {name: self.certificates.url(self._address()) for name in names}
        return [self._member(name, peers, cluster) for name in names]

    def _member(self, name: str, peers: dict[str, str], cluster: str) -> ProcessPlan:
        address = self._address()
        url = self.certificates.url(address)
        argv = (
            self._programs.etcd,
            f"--name={name}",
            f"--data-dir={self._options.state_dir / name}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peers[name]}",
            f"--initial-advertise-peer-urls={peers[name]}",
            "--initial-cluster=" + ",".join(f"{each}={url}" for each, url in peers.items()),
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            # etcd before 3.5.3, and PyPI's is 3.5.1, may lose an applied entry at a kill: it
            # commits the index of an entry apart from its data. A batch of one leaves hardly a
            # moment for it.
            "--backend-batch-limit=1",
            "--log-level=warn",
            *self.certificates.etcd_member(cluster, name),
        )
        return ProcessPlan(
            role="etcd",
            region=None if cluster == GLOBAL else cluster,
            id=name,
            argv=argv,
            address=address,
            called_with=self._up(self.certificates.etcd_caller(cluster, UP)),
        )

    def _up(self, files: TlsFiles) -> TlsFiles | None:
        return files if self.certificates.enabled else None

    def fork_server(self) -> list[ProcessPlan]:
        """One for all agents: several would each import the same libraries for six seconds."""
        path = self._fork_socket()
        if path is None:
            return []
        argv = (self._programs.python, "-P", "-m", "node_agent.engine.fork_server")
        return [
            ProcessPlan(
                role="fork-server",
                region=None,
                id="fork-server",
                argv=(*argv, "--listen", str(path)),
                address=str(path),
                ready_file=path,
            )
        ]

    def _fork_socket(self) -> Path | None:
        """Where it listens; None for a single agent, or where the path is too long for one."""
        agents = len(self._options.regions) * self._options.nodes_per_region
        path = self._options.state_dir / "run" / "fork.sock"
        return path if agents > 1 and len(str(path)) <= _MAX_SOCKET_PATH else None

    def control_plane(
        self, region: str, number: int, *, etcd: Sequence[str], shared: Sequence[str]
    ) -> ProcessPlan:
        """One replica of a region's control plane."""
        replica_id = f"{region}-control-{number}"
        config: dict[str, Any] = {
            "listen": self._address(),
            "region": region,
            "replica_id": replica_id,
            "etcd": {
                "endpoints": list(etcd),
                **self.certificates.etcd_client(
                    GLOBAL if self._options.etcd == "shared" else region, replica_id
                ),
            },
            "global_etcd": {
                "endpoints": list(shared),
                **self.certificates.etcd_client(GLOBAL, replica_id),
            },
            "operator": {
                "listen": self._address(),
                "auth": {"issuers": [self._issuer()]},
                **self.certificates.public(replica_id),
            },
            "quotas": {
                "max_regions": len(self._options.regions),
                "max_gateways": self._options.gateways_per_region,
            },
            "drain_s": 1.0,
            **self.certificates.mtls(identity.Role.CONTROL_PLANE, region, replica_id),
        }
        return self._module(
            "control-plane",
            "control_plane",
            replica_id,
            region,
            config,
            addresses={"operator": config["operator"]["listen"]},
        )

    def gateway(self, region: str, number: int, *, controls: Sequence[str]) -> ProcessPlan:
        """One gateway of a region; those of a region share their artifacts."""
        grpc, http = self._address(), self._address()
        gateway_id = f"{region}-gateway-{number}"
        folder = self._options.state_dir
        config = {
            "region": region,
            "gateway_id": gateway_id,
            "state_dir": str(folder / "gateways" / gateway_id),
            "grpc": {"listen": grpc},
            "peer": {"listen": self._address()},
            "http": {"listen": http},
            "auth": {"issuers": [self._issuer()]},
            "control_plane": {"endpoints": list(controls)},
            "artifacts": {"url": str(folder / "artifacts" / region)},
            "drain_s": DRAIN_S,
            **self.certificates.public(gateway_id),
            **self.certificates.mtls(identity.Role.GATEWAY, region, gateway_id),
        }
        addresses = {"http": self.certificates.url(http)}
        return self._module("gateway", "gateway", gateway_id, region, config, grpc, addresses)

    def node(self, region: str, number: int, *, controls: Sequence[str]) -> ProcessPlan:
        """One node agent of a region."""
        node_id = f"{region}-node-{number}"
        config = {
            "node_id": node_id,
            "region": region,
            "listen": self._address(),
            "control_planes": list(controls),
            "model": {
                "source": self._options.model_source,
                "manifest": self._options.model_manifest,
                "cache_dir": str(self._options.state_dir / "weights-cache"),
            },
            "workers": {
                "threads": self._options.threads,
                **({"fork_server": str(fork)} if (fork := self._fork_socket()) else {}),
            },
            "drain_timeout_s": DRAIN_S,
            **self.certificates.mtls(identity.Role.NODE, region, node_id),
        }
        return self._module("node-agent", "node_agent", node_id, region, config)

    def _module(
        self,
        role: Role,
        module: str,
        process_id: str,
        region: str,
        config: dict[str, Any],
        address: str | None = None,
        addresses: dict[str, str] | None = None,
    ) -> ProcessPlan:
        config_file = self._options.state_dir / "config" / f"{process_id}.yaml"
        ready_file = self._options.state_dir / "run" / f"{process_id}.json"
        return ProcessPlan(
            role=role,
            region=region,
            id=process_id,
            argv=(self._programs.python, "-P", "-m", module, "--config", str(config_file)),
            address=address or config["listen"],
            config={**config, "ready_file": str(ready_file)},
            config_file=config_file,
            ready_file=ready_file,
            addresses=addresses or {},
            called_with=self._up(self.certificates.part(identity.Role.OPERATOR, region, UP)),
        )

    def _issuer(self) -> dict[str, str]:
        """Whose tokens hold: this mesh's own."""
        return {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks_file": str(self._options.state_dir / "keys" / "jwks.json"),
        }

    def _address(self) -> str:
        return f"127.0.0.1:{next(self._ports)}"
