"""Where the mesh is and who asks: the one module of the library that reads the environment.

``REELMESH_ENDPOINTS``  comma list of gateways, each ``host:port`` or ``region=host:port``
``REELMESH_TOKEN``      the bearer token
``REELMESH_CA``         path of a PEM file; with it every endpoint is spoken to by TLS

A host on this machine is spoken to in plain text, any other by TLS: a bearer token
must not cross a network in the clear by accident. ``grpc://host:port`` asks for plain
text and ``grpcs://host:port`` for TLS, whatever the host.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan_t2v_sdk.errors import ConfigurationError

ENDPOINTS_VARIABLE = "REELMESH_ENDPOINTS"
TOKEN_VARIABLE = "REELMESH_TOKEN"  # noqa: S105 - the variable's name, not a token
CA_VARIABLE = "REELMESH_CA"

_TLS_BY_SCHEME = {"grpc": False, "http": False, "grpcs": True, "https": True}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One gateway's gRPC address."""

    address: str
    """``host:port``."""
    region: str | None
    """The region it was said to be in; None until it has been asked."""
    tls: bool

    def __str__(self) -> str:
        return f"{self.region}={self.address}" if self.region else self.address


@dataclass(frozen=True, slots=True)
class MeshAccess:
    """Everything that is needed to speak to a mesh."""

    endpoints: tuple[Endpoint, ...]
    token: str = field(repr=False)
    ca_pem: bytes | None = field(default=None, repr=False)


def resolve_access(
    *,
    endpoints: str | Iterable[str] | None,
    token: str | None,
    ca: str | Path | None,
    environ: Mapping[str, str] | None = None,
) -> MeshAccess:
    """The access that arguments and environment name together; arguments win.

    Raises:
        ConfigurationError: No endpoint or token is named, or one cannot be read.
    """
    env = os.environ if environ is None else environ
    listed = env.get(ENDPOINTS_VARIABLE, "") if endpoints is None else endpoints
    texts = listed.split(",") if isinstance(listed, str) else list(listed)
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ConfigurationError(
            f"no gateway is named: pass endpoints=['host:port'] or set {ENDPOINTS_VARIABLE}; "
            "`reelmesh up` prints the line to copy"
        )
    secret = env.get(TOKEN_VARIABLE, "") if token is None else token
    if not secret.strip():
        raise ConfigurationError(
            f"no token is given: pass token=… or set {TOKEN_VARIABLE}; "
            "`reelmesh up` prints the line to copy"
        )
    ca_path = (env.get(CA_VARIABLE) or None) if ca is None else ca
    pem = _read_ca(Path(ca_path)) if ca_path is not None else None
    parsed = tuple(parse_endpoint(text, force_tls=pem is not None) for text in texts)
    return MeshAccess(endpoints=parsed, token=secret.strip(), ca_pem=pem)


def read_mesh(path: str | Path) -> MeshAccess:
    """The user's access that a ``mesh.json`` of ``reelmesh up`` describes.

    Raises:
        ConfigurationError: The file is missing or is no mesh.json.
    """
    file = Path(path)
    try:
        mesh: Any = json.loads(file.read_text(encoding="utf-8"))
        texts = [
            f"{name}={gateway['grpc']}"
            for name, region in mesh["regions"].items()
            for gateway in region.get("gateways") or [region]
        ]
        return resolve_access(
            endpoints=texts, token=mesh["tokens"]["user"], ca=mesh.get("ca"), environ={}
        )
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot be read: {error.strerror}; is a mesh up? `reelmesh up` writes it"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file}: is no mesh.json of `reelmesh up`: {type(error).__name__} {error}"
        ) from None


def parse_endpoint(text: str, *, force_tls: bool = False) -> Endpoint:
    """Reads ``[region=][scheme://]host:port``.

    Raises:
        ConfigurationError: Names the text and what is wrong with it.
    """
    region, equals, rest = text.partition("=")
    if not equals:
        region, rest = "", text
    scheme, has_scheme, address = rest.strip().partition("://")
    if not has_scheme:
        scheme, address = "", rest.strip()
    elif scheme not in _TLS_BY_SCHEME:
        raise ConfigurationError(f"endpoint {text!r}: write grpc:// or grpcs://, not {scheme}://")
    host, colon, port = address.rstrip("/").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"endpoint {text!r}: write it as host:port or region=host:port, "
            "with a port from 1 to 65535"
        )
    tls = force_tls or _TLS_BY_SCHEME.get(scheme, not _is_this_machine(host))
    return Endpoint(address=f"{host}:{port}", region=region.strip() or None, tls=tls)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_ca(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"CA file {path}: cannot be read: {error.strerror}") from None
