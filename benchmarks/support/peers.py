"""The named peers: nginx (grpc_pass, and sendfile) and the real Envoy."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  upstream node {{ server {node}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} http2;
    keepalive_requests 1000000;
    location / {{ grpc_pass grpc://node; grpc_read_timeout 600s; }}
  }}
}}
"""

# Files as they lie there, by sendfile.
NGINX_FILES = """
{user}
daemon off; worker_processes 1; pid {folder}/nginx-files.pid; error_log {folder}/nginx-files.err;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; sendfile_max_chunk 2m;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  types {{ video/mp4 mp4; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; root {root}; }}
}}
"""


def nginx_files_command(folder: Path, *, root: Path, port: int) -> list[str] | None:
    """How to start nginx over a folder of files; None where nginx is not installed."""
    binary = _nginx()
    if binary is None:
        return None
    config = folder / "nginx-files.conf"
    # Started by root it would give up root, and could not read our files.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX_FILES.format(user=user, folder=folder, root=root, port=port))
    return [binary, "-c", str(config), "-p", str(folder)]


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def nginx_command(folder: Path, *, node: str, port: int) -> list[str] | None:
    """How to start nginx before ``node``; None where nginx is not installed."""
    binary = _nginx()
    if binary is None:
        return None
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, node=node, port=port))
    return [binary, "-c", str(config), "-p", str(folder)]


def envoy_command(
    folder: Path, *, node: str, port: int, jwks: Path, issuer: str, audience: str
) -> list[str] | None:
    """How to start Envoy with jwt_authn and a local rate limit before ``node``."""
    binary = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if binary is None:
        return None
    config = folder / "envoy.json"
    config.write_text(
        json.dumps(_envoy_config(node=node, port=port, jwks=jwks, issuer=issuer, audience=audience))
    )
    return [
        binary,
        "-c",
        str(config),
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--disable-hot-restart",
    ]


def _any(kind: str, **fields: object) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def _envoy_config(
    *, node: str, port: int, jwks: Path, issuer: str, audience: str
) -> dict[str, object]:
    filters = _http_filters(jwks=jwks, issuer=issuer, audience=audience)
    listener = {
        "address": _socket_address(f"127.0.0.1:{port}"),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": _connection(filters)}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_cluster(node)]}}


def _http_filters(*, jwks: Path, issuer: str, audience: str) -> list[dict[str, object]]:
    """What stands for the gateway's own edge: tokens verified and requests counted."""
    http = "envoy.extensions.filters.http"
    provider = {
        "issuer": issuer,
        "audiences": [audience],
        "local_jwks": {"filename": str(jwks)},
    }
    jwt = _any(
        f"{http}.jwt_authn.v3.JwtAuthentication",
        providers={"local": provider},
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "local"}}],
    )
    always = {"default_value": {"numerator": 100}}
    limit = _any(
        f"{http}.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="limit",
        token_bucket={"max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s"},
        filter_enabled=always,
        filter_enforced=always,
    )
    return [
        {"name": "jwt", "typed_config": jwt},
        {"name": "limit", "typed_config": limit},
        {"name": "router", "typed_config": _any(f"{http}.router.v3.Router")},
    ]


def _connection(filters: list[dict[str, object]]) -> dict[str, object]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "node", "timeout": "0s"}}
    return _any(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="edge",
        codec_type="HTTP2",
        route_config={"virtual_hosts": [{"name": "node", "domains": ["*"], "routes": [route]}]},
        http_filters=filters,
    )


def _cluster(node: str) -> dict[str, object]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": _socket_address(node)}}
    return {
        "name": "node",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "node", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            options: _any(options, explicit_http_config={"http2_protocol_options": {}})
        },
    }


def _socket_address(address: str) -> dict[str, object]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
