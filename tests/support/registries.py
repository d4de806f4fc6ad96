"""Registered versions for nodes' tests, made as reelctl makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reelmesh.v1 import registry_pb2 as reg

from control_plane.reelctl.registering import Wish, make_registration


def registration(
    source: str | Path,
    *,
    key: Path | None,
    name: str = "small",
    version: str = "v1",
    sources: Sequence[str] = (),
    base: str = "",
    **options: Any,
) -> reg.RegisteredModel:
    """What `reelctl model register` would send; ``options`` are a store's."""
    model, _ = make_registration(
        Wish(
            name=name,
            version=version,
            source=str(source),
            base=base,
            manifest=None,
            serve_from=tuple(sources),
            exclude=(),
            key=key,
            store_options=options.get("store_options", {}),
            client_options=options.get("client_options", {}),
        )
    )
    model.state = reg.REGISTRATION_STATE_ACTIVE
    return model
