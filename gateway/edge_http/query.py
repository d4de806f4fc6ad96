"""Query parameters, read strictly."""

from __future__ import annotations

from aiohttp import web

from gateway import errors


def flag(request: web.Request, name: str) -> bool:
    """A parameter that is 0, 1 or left out.

    Raises:
        InvalidRequest: It is something else.
    """
    text = request.query.get(name, "0")
    if text not in ("0", "1"):
        raise errors.InvalidRequest((errors.FieldViolation(name, "must be 0 or 1", ("0", "1")),))
    return text == "1"
