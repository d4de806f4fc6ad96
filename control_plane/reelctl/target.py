"""Whom a command speaks to; the one module of ``reelctl`` that reads the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.reelctl.errors import UsageError

ENDPOINT_VARIABLE = "REELCTL_ENDPOINT"
TOKEN_VARIABLE = "REELCTL_TOKEN"  # noqa: S105 - a variable's name
CA_VARIABLE = "REELCTL_CA"
CERT_VARIABLE = "REELCTL_CERT"
CERT_KEY_VARIABLE = "REELCTL_CERT_KEY"
STATE_DIR_VARIABLE = "REELMESH_STATE_DIR"
DEFAULT_STATE_DIR = Path("mesh-state")
DEFAULT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Site:
    """The control planes of one region; any of them answers."""

    # "" where it is not known: the server says it.
    region: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a command speaks to, and as whom."""

    sites: tuple[Site, ...]
    token: str = field(repr=False)
    ca: Path | None = None
    cert: Path | None = None
    """With its key, an operator's own certificate, where the listener wants one."""
    cert_key: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S


def find_target(
    *,
    endpoint: str | None = None,
    token: str | None = None,
    mesh: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    cert_key: Path | None = None,
    region: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
) -> Target:
    """The target that options and environment name; options win.

    Args:
        endpoint: ``host:port``, or a comma list of them, each with ``region=`` before it
            where there are several regions.
        token: An operator's token.
        mesh: ``mesh.json`` of ``reelmesh up``, or its folder; it has a token too.
        ca: PEM file of the authority of the endpoint's certificate; the mesh's by default.
        cert: PEM file of an operator's certificate.
        cert_key: PEM file of its key.
        region: Only this one of the regions.
        timeout_s: Seconds a call may take.
        environ: For tests; the process's own by default.

    Raises:
        UsageError: Nothing names a control plane or a token, or what does is wrong.
    """
    env = os.environ if environ is None else environ
    if endpoint and mesh:
        raise UsageError("--endpoint and --mesh exclude one another: give one of them")
    token = token or env.get(TOKEN_VARIABLE, "").strip()
    ca = ca or _path(env, CA_VARIABLE)
    cert, cert_key = cert or _path(env, CERT_VARIABLE), cert_key or _path(env, CERT_KEY_VARIABLE)
    if (cert is None) != (cert_key is None):
        raise UsageError("--cert and --cert-key go together: give both or neither")
    named = endpoint or ("" if mesh else env.get(ENDPOINT_VARIABLE, "").strip())
    if named:
        sites = parse_endpoints(named)
    else:
        sites, meshs_token, meshs_ca = _read_mesh(_mesh_file(mesh, env))
        token, ca = token or meshs_token, ca or meshs_ca
    if not token:
        raise UsageError(
            "there is no token",
            hint=f"give one with --token or {TOKEN_VARIABLE}: fleet:read "
            "to look, fleet:operate to change",
        )
    if region:
        sites = _only(sites, region)
    return Target(
        sites=sites, token=token, ca=ca, cert=cert, cert_key=cert_key, timeout_s=timeout_s
    )


def _path(env: Mapping[str, str], variable: str) -> Path | None:
    name = env.get(variable, "").strip()
    return Path(name) if name else None


def parse_endpoints(text: str) -> tuple[Site, ...]:
    """Sites of ``host:port,…`` or ``region=host:port,…``; equal regions are one site.

    Raises:
        UsageError: An entry is none.
    """
    sites: dict[str, list[str]] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        region, _, address = entry.rpartition("=")
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise UsageError(
                f"{entry!r} is no endpoint", hint="write host:port, or region=host:port"
            )
        sites.setdefault(region, []).append(address)
    if not sites:
        raise UsageError("the endpoint is empty", hint="write host:port, or region=host:port")
    return tuple(Site(region, tuple(addresses)) for region, addresses in sites.items())


def _only(sites: Sequence[Site], region: str) -> tuple[Site, ...]:
    found = tuple(site for site in sites if site.region in ("", region))
    if not found:
        names = ", ".join(site.region for site in sites)
        raise UsageError(f"there is no region {region!r} among the endpoints", hint=f"of: {names}")
    return found


def _mesh_file(mesh: Path | None, env: Mapping[str, str]) -> Path:
    if mesh is not None:
        return mesh / "mesh.json" if mesh.is_dir() else mesh
    state_dir = env.get(STATE_DIR_VARIABLE, "").strip()
    file = (Path(state_dir) if state_dir else DEFAULT_STATE_DIR) / "mesh.json"
    if not file.exists():
        raise UsageError(
            f"no control plane is known: {file} is not there",
            hint=f"give --endpoint host:port, {ENDPOINT_VARIABLE}, or --mesh DIR/mesh.json",
        )
    return file


def _read_mesh(file: Path) -> tuple[tuple[Site, ...], str, Path | None]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        regions: dict[str, Any] = dict(document["regions"])
        token = str(document.get("tokens", {}).get("operator", ""))
        ca = document.get("ca")
        sites = tuple(
            Site(name, addresses)
            for name, region in regions.items()
            if (addresses := _operator_addresses(region))
        )
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{file}: is no mesh.json of `reelmesh up`") from None
    if not sites:
        raise UsageError(
            f"{file}: names no operators' address",
            hint="the mesh was started by an older version: start it anew, or give --endpoint",
        )
    return sites, token, Path(ca) if isinstance(ca, str) else None


def _operator_addresses(region: Mapping[str, Any]) -> tuple[str, ...]:
    """The region's own entry and those of its replicas, each once."""
    entries = [region, *region.get("control_planes", ())]
    found = [str(entry["operator"]) for entry in entries if entry.get("operator")]
    return tuple(dict.fromkeys(found))
