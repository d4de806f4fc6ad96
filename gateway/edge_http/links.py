"""Where the store itself has a video, for clients that ask to be sent there."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway import errors
from gateway.application import Caller, Variant, VideoApplication
from gateway.edge_http.json_values import dumps
from gateway.edge_http.query import flag

# The URL is good for whoever has it: nobody keeps the answer, or tells where it came from.
_PRIVATE = {hdrs.CACHE_CONTROL: "no-store", "Referrer-Policy": "no-referrer"}


async def send_link(
    request: web.Request,
    *,
    application: VideoApplication,
    caller: Caller,
    video_id: str,
    variant: Variant,
) -> web.Response:
    """Answers ``link=1`` with a JSON object, and ``redirect=1`` with 302.

    Raises:
        InvalidRequest: Both are asked for, or the video's home gives no links; in the client's
            words.
        GatewayError: As :meth:`gateway.application.VideoApplication.link`.
    """
    redirect = flag(request, "redirect")
    if redirect and flag(request, "link"):
        raise errors.InvalidRequest(
            (errors.FieldViolation("redirect", "excludes link; ask for one of them"),)
        )
    try:
        link = await application.link(caller, video_id, variant=variant)
    except errors.InvalidRequest as error:
        raise _in_clients_words(error) if redirect else error from None
    if redirect:
        return web.Response(status=302, headers={hdrs.LOCATION: link.url, **_PRIVATE})
    found = {
        "object": "video.link",
        "video_id": video_id,
        "url": link.url,
        "expires_at": int(link.expires_at_s),
        "size_bytes": link.total_bytes,
        "sha256": link.sha256,
    }
    return web.Response(body=dumps(found), content_type="application/json", headers=_PRIVATE)


def _in_clients_words(error: errors.InvalidRequest) -> errors.InvalidRequest:
    names = {"link": "redirect"}
    return errors.InvalidRequest(
        tuple(
            errors.FieldViolation(names.get(v.field, v.field), v.message, v.nearest)
            for v in error.violations
        )
    )
