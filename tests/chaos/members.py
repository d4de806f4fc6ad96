"""Whether the members of an etcd cluster hold the same data."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

TIMEOUT_S = 2.0


def _post(url: str, path: str) -> dict[str, object]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body=b"{}")
        answer = json.loads(connection.getresponse().read())
        return answer if isinstance(answer, dict) else {}
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


async def hashes(urls: Sequence[str], *, within_s: float) -> list[tuple[object, ...]]:
    """(revision, hash) of each member once all answer with one revision, or what they said last.

    HashKV of a moving store differs by the revision alone, so it is asked again until the
    members are caught at the same one.
    """
    deadline_s = asyncio.get_running_loop().time() + within_s
    while True:
        answers = [await asyncio.to_thread(_post, url, "/v3/maintenance/hash") for url in urls]
        found = [
            (answer.get("header", {}).get("revision"), answer.get("hash"))  # type: ignore[attr-defined]
            for answer in answers
        ]
        revisions = {revision for revision, _ in found}
        if len(revisions) == 1 and None not in revisions and len(set(found)) == 1:
            return found
        if asyncio.get_running_loop().time() > deadline_s:
            return found
        await asyncio.sleep(0.1)


def leader(urls: Sequence[str]) -> str:
    """The URL of the member that leads.

    Raises:
        LookupError: No member says that it does.
    """
    for url in urls:
        answer = _post(url, "/v3/maintenance/status")
        header = answer.get("header")
        if isinstance(header, dict) and header.get("member_id") == answer.get("leader"):
            return url
    raise LookupError("no member leads")
