"""Fetches a registered version into the content store; a process of its own under the agent.

``python -m node_agent.fetch_version`` reads its settings as JSON from the first line of stdin,
and from further lines whom it may ask now: ``{"peers": [...], "may_use_origin": ...}``. It writes
``{"done_bytes": ..., ...}`` as it goes and ``{"bad_peer": ...}`` of a peer that sent wrong bytes,
then ``{"folder": ...}`` or ``{"error": ...}``. It ends when stdin does.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from reelmesh.v1 import registry_pb2 as reg

from node_agent.bandwidth import Throttle
from node_agent.content import ContentStore
from node_agent.errors import WeightsError
from node_agent.fetch_content import Fetch, Routes, Tally
from node_agent.fetch_peer import Peers
from node_agent.fetch_source import Source
from node_agent.fetch_watch import first_line
from node_agent.trust import check_version, read_trusted_keys
from reelkit.mtls.config import MutualTlsSettings


def fetch_version(
    request: dict[str, Any],
    routes: Routes,
    *,
    tell: Callable[..., None],
    give_up: Callable[[str], None],
) -> Path:
    """A version's folder in the content store, every byte of it checked.

    Raises:
        WeightsError: Says what is wrong and what to do about it.
    """
    model = reg.RegisteredModel.FromString(base64.b64decode(request["model"]))
    store = ContentStore(Path(request["cache_dir"]), max_bytes=request["max_bytes"])
    store.make_folders()
    # Before anything is fetched.
    keys = read_trusted_keys([Path(file) for file in request["trusted_keys"]])
    fetch = _make_fetch(request, model, store, routes, tell=tell, give_up=give_up)
    data = model.manifest or fetch.get_manifest(model.manifest_sha256, model.manifest_size_bytes)
    version = check_version(model, data, keys=keys, required=request["require_signature"])

    def on_change(tally: Tally) -> None:
        tell(
            done_bytes=tally.done_bytes,
            total_bytes=tally.total_bytes,
            origin_bytes=tally.origin_bytes,
            peer_bytes=tally.peer_bytes,
            waiting=tally.waiting > 0,
        )

    if store.find(version.digest) is None:
        tally = Tally(version.size_bytes_once, on_change)
        on_change(tally)
        fetch.get_all(version, tally)
        on_change(tally)
    try:
        return store.commit(version)
    except FileNotFoundError:
        raise WeightsError(
            f"{version.name}@{version.version}: another agent of this machine took its room"
        ) from None


def _make_fetch(
    request: dict[str, Any],
    model: reg.RegisteredModel,
    store: ContentStore,
    routes: Routes,
    *,
    tell: Callable[..., None],
    give_up: Callable[[str], None],
) -> Fetch:
    mtls = request["mtls"]
    return Fetch(
        store=store,
        sources=[
            Source(
                url,
                store_options=request["store_options"],
                client_options=request["client_options"],
                stall_s=request["fetch_stall_s"],
            )
            for url in model.sources
        ],
        peers=Peers(
            region=request["region"],
            mtls=None if mtls is None else MutualTlsSettings.model_validate(mtls),
        ),
        routes=routes,
        throttle=Throttle(request["max_bytes_per_s"]),
        stall_s=request["fetch_stall_s"],
        on_stall=give_up,
        on_bad_peer=lambda address: tell(bad_peer=address),
        parallel=request["parallel_files"],
    )


def main() -> int:
    """The process's body."""
    request = json.loads(sys.stdin.readline())
    routes = Routes(avoided=set(request["avoided"]))
    _take_routes(routes, request)
    threading.Thread(target=_follow, args=(routes, sys.stdin), daemon=True).start()
    speaking = threading.Lock()

    def tell(**line: Any) -> None:
        with speaking:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def give_up(sentence: str) -> None:
        tell(error=sentence)
        # The thread that waits cannot be woken; files that it has begun are gone on with.
        os._exit(1)

    try:
        folder = fetch_version(request, routes, tell=tell, give_up=give_up)
    except (WeightsError, OSError) as error:
        tell(error=str(error))
        _leave(1)
    except Exception as error:  # noqa: BLE001 - the process's boundary: the agent must hear of it
        traceback.print_exc()
        tell(error=f"{type(error).__name__}: {first_line(error)}")
        _leave(1)
    tell(folder=str(folder))
    _leave(0)
    return 0


def _take_routes(routes: Routes, told: dict[str, Any]) -> None:
    routes.peers, routes.may_use_origin = told["peers"], told["may_use_origin"]


def _follow(routes: Routes, lines: TextIO) -> None:
    for line in lines:
        _take_routes(routes, json.loads(line))
    os._exit(1)


def _leave(code: int) -> None:
    # The thread that reads stdin holds its lock, which would hang the interpreter's exit; and one
    # that waits for a peer or a source is not waited for.
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
