"""A registered version's source as it is read by content: any file, from any byte on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from node_agent.errors import WeightsError
from node_agent.fetch_hub import HUB_SCHEME
from node_agent.fetch_store import Store, describe_store_error, open_store
from node_agent.fetch_watch import public_url

_BLOCK_BYTES: Final = 256 * 1024


class OtherFileError(WeightsError):
    """What lies there is not of the listed size: it is another file."""


class Source:
    """A folder that nodes fetch from.

    Args:
        url: As the registry has it.
        store_options: By obstore's names.
        client_options: Likewise.
        stall_s: Silence of the connection that is borne.
    """

    def __init__(
        self,
        url: str,
        *,
        store_options: Mapping[str, str],
        client_options: Mapping[str, str],
        stall_s: float,
    ) -> None:
        self.where = public_url(url).rstrip("/")
        self._url = url
        self._store_options = store_options
        self._client_options = client_options
        self._stall_s = stall_s

    @functools.cached_property
    def _store(self) -> Store:
        """Opened when it is asked: one that cannot be must not keep the others from it."""
        options = self._client_options
        if not self._url.startswith(HUB_SCHEME):
            return open_store(self._url, self._store_options, options, stall_s=self._stall_s)
        address, ours = _hub_address(self._url)
        return open_store(address, {}, {**options, **ours}, stall_s=self._stall_s)

    def read(self, path: str, offset: int, size_bytes: int) -> Iterator[bytes]:
        """A file's bytes from an offset on.

        Raises:
            OtherFileError: It is not of ``size_bytes``.
            WeightsError: It cannot be read; says what to do.
        """
        try:
            skip, result = self._open(path, offset)
            if result.meta["size"] != size_bytes:
                raise OtherFileError(
                    f"{self.where}/{path}: has {result.meta['size']} bytes, and the manifest says "
                    f"{size_bytes}; it is not what was registered"
                )
            for block in result.stream(min_chunk_size=_BLOCK_BYTES):
                data = bytes(block)
                if skip:
                    skip, data = max(0, skip - len(data)), data[skip:]
                if data:
                    yield data
        except (OSError, BaseError) as error:
            advice = "the manifest lists it; upload it again"
            raise describe_store_error(error, f"{self.where}/{path}", if_missing=advice) from None

    def _open(self, path: str, offset: int) -> tuple[int, Any]:
        """What is to be skipped, and the answer."""
        if not offset:
            return 0, obstore.get(self._store, path)
        try:
            return 0, obstore.get(self._store, path, options={"range": {"offset": offset}})
        except NotSupportedError:
            # A web server may know no ranges of its smaller files.
            return offset, obstore.get(self._store, path)


def _hub_address(url: str) -> tuple[str, dict[str, Any]]:
    """Where a repository's files are served from, at one commit."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise WeightsError(
            f"{url}: huggingface_hub is not installed; pip install 'reelmesh[node]'"
        ) from None
    name, _, revision = url.removeprefix(HUB_SCHEME).partition("@")
    endpoint = str(huggingface_hub.constants.ENDPOINT)
    options: dict[str, Any] = {}
    if endpoint.startswith("http://"):
        options["allow_http"] = "true"
    token = huggingface_hub.get_token()
    if token:
        # Dropped by the client where it is sent on to another host.
        options["default_headers"] = {"authorization": f"Bearer {token}"}
    return f"{endpoint}/{name}/resolve/{revision or 'main'}", options
