"""Parameters of a request that several routes have."""

from __future__ import annotations

import re

from aiohttp import web

from gateway import errors

DEFAULT_PAGE = 20
MAX_PAGE = 100
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


def idempotency_key(request: web.Request) -> str:
    """The request's Idempotency-Key, "" without; raises InvalidRequest where it is none."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return ""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise violation(
            "Idempotency-Key",
            "must be 1 to 128 visible ASCII characters without spaces; leave it out for none",
        )
    return key


def page_size(text: str | None, *, default: int = DEFAULT_PAGE, most: int = MAX_PAGE) -> int:
    """A page's length, as ``limit`` says it; raises InvalidRequest where it is none."""
    if text is None:
        return default
    rule = f"must be a whole number, 1 to {most}"
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise violation("limit", rule)
    if not 1 <= int(text) <= most:
        raise violation("limit", rule, (str(min(max(int(text), 1), most)),))
    return int(text)


def violation(field: str, message: str, nearest: tuple[str, ...] = ()) -> errors.InvalidRequest:
    """The error of one field."""
    return errors.InvalidRequest((errors.FieldViolation(field, message, nearest),))
