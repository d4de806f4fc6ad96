"""What HTTP says of the cache: ``Cache-Control`` of a request, ``Cache-Status`` (RFC 9211)."""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from reelmesh.v1 import video_pb2

from gateway.application import Download

CACHE_STATUS: Final = "Cache-Status"

_SAID: Final = {
    video_pb2.CACHE_STATUS_HIT: "reelmesh; hit",
    video_pb2.CACHE_STATUS_MISS: "reelmesh; fwd=miss",
    video_pb2.CACHE_STATUS_SHARED: "reelmesh; fwd=miss; collapsed",
    video_pb2.CACHE_STATUS_REFRESHED: "reelmesh; fwd=request",
    video_pb2.CACHE_STATUS_BYPASSED: "reelmesh; fwd=bypass",
}
_STORED: Final = frozenset((video_pb2.CACHE_STATUS_MISS, video_pb2.CACHE_STATUS_REFRESHED))


def wants_fresh(request: web.Request) -> bool:
    """Whether the client wants no video but one that is drawn for it."""
    directives = request.headers.get(hdrs.CACHE_CONTROL, "").lower().split(",")
    return any(directive.strip().split("=")[0] == "no-cache" for directive in directives)


def cache_headers(video: video_pb2.Video) -> dict[str, str]:
    """How a video came to be, in the words of RFC 9211; nothing where that is not known.

    ``stored``: it may answer later requests. ``collapsed``: it is, or was, drawn for another
    request too.
    """
    return _headers(video.cache, whole=video.status == video_pb2.VIDEO_STATUS_COMPLETED)


def content_headers(download: Download) -> dict[str, str]:
    """The same beside the bytes of a video; of another region's, where these came from."""
    return _headers(download.cache, whole=True)


def _headers(cache: video_pb2.CacheStatus.ValueType, *, whole: bool) -> dict[str, str]:
    said = _SAID.get(cache)
    if said is None:
        return {}
    return {CACHE_STATUS: said + ("; stored" if whole and cache in _STORED else "")}
