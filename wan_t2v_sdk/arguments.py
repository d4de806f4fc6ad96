"""The settings that every way of asking for a video takes, checked in one place."""

from __future__ import annotations

import difflib
import secrets
from typing import Literal, TypedDict

from reelmesh.v1 import tenant_pb2
from reelmesh.v1.tenant_pb2 import Priority as PriorityNumber

from wan_t2v_sdk.errors import FieldViolation, InvalidRequestError
from wan_t2v_sdk.request import VideoRequest

MAX_KEY_CHARS = 120

Priority = Literal["interactive", "batch"]

_PRIORITIES: dict[str, PriorityNumber.ValueType] = {
    "interactive": tenant_pb2.PRIORITY_INTERACTIVE,
    "batch": tenant_pb2.PRIORITY_BATCH,
}


class VideoSettings(TypedDict, total=False):
    """Optional settings of a video; what is left out is the model's default."""

    negative_prompt: str | None
    model: str | None
    resolution: str | None
    """A named size of the model, such as ``480p``; excludes width and height."""
    width: int | None
    height: int | None
    num_frames: int | None
    length_sec: float | None
    """Length in seconds, resolved by the model's manifest; excludes num_frames."""
    fps: float | None
    steps: int | None
    guidance_scale: float | None
    flow_shift: float | None
    seed: int | None
    quality: str | None
    """``auto``: under load it may be drawn in fewer steps; the result says so."""


def request_of(text: str, settings: VideoSettings, *, default_model: str | None) -> VideoRequest:
    """The request that a prompt and its settings make.

    Raises:
        TypeError: A setting is none of :class:`VideoSettings`.
    """
    for name in settings:
        if name not in VideoSettings.__annotations__:
            close = difflib.get_close_matches(name, VideoSettings.__annotations__, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")
    model = settings.get("model")
    return VideoRequest(
        prompt=text,
        negative_prompt=settings.get("negative_prompt"),
        model=default_model if model is None else model,
        resolution=settings.get("resolution"),
        width=settings.get("width"),
        height=settings.get("height"),
        num_frames=settings.get("num_frames"),
        seconds=settings.get("length_sec"),
        fps=settings.get("fps"),
        steps=settings.get("steps"),
        guidance_scale=settings.get("guidance_scale"),
        flow_shift=settings.get("flow_shift"),
        seed=settings.get("seed"),
        quality=settings.get("quality"),
    )


def check_priority(priority: Priority | None) -> PriorityNumber.ValueType:
    """The priority to ask for; None leaves it to the tenant's.

    Raises:
        InvalidRequestError: There is no such priority.
    """
    if priority is None:
        return tenant_pb2.PRIORITY_UNSPECIFIED
    if priority not in _PRIORITIES:
        rule = f"must be {' or '.join(_PRIORITIES)}, not {priority!r}"
        raise InvalidRequestError(
            f"priority: {rule}", violations=(FieldViolation("priority", rule),)
        )
    return _PRIORITIES[priority]


def check_key(key: str | None) -> str:
    """The idempotency key to use: the caller's, or a fresh one.

    Raises:
        InvalidRequestError: It is empty, too long or holds characters beyond ASCII.
    """
    if key is None:
        return secrets.token_urlsafe(18)
    # A few characters are left for the number of a further run.
    if not 0 < len(key) <= MAX_KEY_CHARS or any(not "!" <= each <= "~" for each in key):
        rule = f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters"
        raise InvalidRequestError(
            f"idempotency_key: {rule}", violations=(FieldViolation("idempotency_key", rule),)
        )
    return key
