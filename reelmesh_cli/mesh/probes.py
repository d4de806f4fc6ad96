"""Asking a process whether it is up: over HTTP, or by the file that it writes."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from reelmesh_cli.mesh.certificates import TlsFiles

POLL_S = 0.1
PROBE_TIMEOUT_S = 2.0
_MAX_BODY_BYTES = 4096


async def wait_for_file(path: Path) -> None:
    """Returns once the file is there; it is written whole, so its being there is enough."""
    # Another process makes the file: there is no event to wait for.
    while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def wait_for_etcd(address: str, files: TlsFiles | None) -> None:
    """Returns once etcd says that it is healthy."""
    context = None if files is None else context_of(files.ca, files)
    url = f"{'http' if files is None else 'https'}://{address}/health"
    while True:
        status, body = await asyncio.to_thread(_get, url, context)
        if status == http.client.OK and '"true"' in body:
            return
        await asyncio.sleep(POLL_S)


async def readiness(url: str, ca: Path | None) -> tuple[bool, str]:
    """Whether a gateway serves its region, and in its own words why not."""
    context = None if ca is None else context_of(ca)
    status, body = await asyncio.to_thread(_get, f"{url}/readyz", context)
    return status == http.client.OK, _reason(body)


def context_of(ca: Path, shown: TlsFiles | None = None) -> ssl.SSLContext:
    """What a caller over TLS believes and shows."""
    context = ssl.create_default_context(cafile=ca)
    if shown is not None:
        context.load_cert_chain(shown.cert, shown.key)
    return context


def _get(url: str, context: ssl.SSLContext | None) -> tuple[int, str]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
        if context is None
        else http.client.HTTPSConnection(host, port, timeout=PROBE_TIMEOUT_S, context=context)
    )
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_BODY_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def _reason(body: str) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body.strip()[:120]
    if isinstance(value, dict):
        for name in ("detail", "reason", "title"):
            if isinstance(value.get(name), str):
                return str(value[name])
    return ""
