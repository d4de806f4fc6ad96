"""What the services of records share: answers and errors of a call, and checks of its fields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog

from control_plane.errors import ControlPlaneError, InvalidRequestError, abort

_log = structlog.get_logger("control_plane.calls")

MAX_PAGE: Final = 100
MAX_KEY_CHARS: Final = 1024
MAX_ID_CHARS: Final = 128

Req = TypeVar("Req")
Resp = TypeVar("Resp")
Observe = Callable[[str, str], None]
"""Told the method and the outcome of each call."""


async def answer(
    observe: Observe,
    method: str,
    work: Callable[[Req], Awaitable[Resp]],
    request: Req,
    context: Any,
) -> Resp:
    """The answer of ``work``, or the end of the call with what its error maps to."""
    try:
        response = await work(request)
    except ControlPlaneError as error:
        observe(method, error.code)
        await abort(context, error)
    except Exception:  # noqa: BLE001  # the process boundary, and it logs
        observe(method, "INTERNAL")
        _log.exception("call failed", method=method)
        await abort(context, ControlPlaneError())
    observe(method, "OK")
    return response


def check_text(field: str, value: str) -> None:
    """Raises InvalidRequestError where it is empty or too long."""
    if not 1 <= len(value) <= MAX_KEY_CHARS:
        raise InvalidRequestError(field, f"must have 1 to {MAX_KEY_CHARS} characters")


def check_id(field: str, value: str) -> None:
    """Raises InvalidRequestError where it cannot be a part of a key."""
    if not 1 <= len(value) <= MAX_ID_CHARS or "/" in value:
        raise InvalidRequestError(field, f"must have 1 to {MAX_ID_CHARS} characters and no '/'")


def check_count(field: str, count: int) -> None:
    """Raises InvalidRequestError where a page is empty or too large."""
    if not 1 <= count <= MAX_PAGE:
        nearest = min(max(count, 1), MAX_PAGE)
        raise InvalidRequestError(field, f"must be 1 to {MAX_PAGE}, such as {nearest}, not {count}")
