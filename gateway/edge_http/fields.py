"""The fields of a create request over HTTP: their names, their types and their targets.

Names are OpenAI's and, beside them, vLLM-Omni's. A value becomes a field of
``VideoSpec`` or ``CreateOptions`` as it is or is refused: nothing is rounded, and what a
model allows is the application's matter.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from gateway.errors import FieldViolation
from gateway.priority import BY_NAME


class Kind(Enum):
    """How a value is written."""

    TEXT = "a string"
    WHOLE = "a whole number"
    NUMBER = "a number"
    # OpenAI writes seconds as a string, people as a number.
    SECONDS = "a number, or a string that holds one"


@dataclass(frozen=True, slots=True)
class CreateField:
    """One field of a create request."""

    kind: Kind
    target: str
    """Field of VideoSpec, or of CreateOptions where ``option``."""
    about: str
    """For whoever reads the API's document."""
    max_value: int = 2**32 - 1
    option: bool = False
    choices: Mapping[str, int] | None = None
    """The texts that it takes, and what each is in its target."""


FIELDS: Mapping[str, CreateField] = MappingProxyType(
    {
        "prompt": CreateField(Kind.TEXT, "prompt", "What the video shows: 1 to 2,000 characters."),
        "negative_prompt": CreateField(
            Kind.TEXT, "negative_prompt", "What it does not show; up to 2,000 characters."
        ),
        "model": CreateField(
            Kind.TEXT,
            "model",
            "A model's name, or name@version to pin one. The region's default without it.",
        ),
        "size": CreateField(Kind.TEXT, "resolution", "OpenAI's name of resolution."),
        "resolution": CreateField(
            Kind.TEXT,
            "resolution",
            "A size of the model such as 1280x704, or one of its named sizes such as 480p, which "
            "resolve to one; the answer says which.",
        ),
        "seconds": CreateField(
            Kind.SECONDS,
            "seconds",
            "How long it is; resolves to the model's nearest length, and the answer says which.",
        ),
        "width": CreateField(
            Kind.WHOLE, "width", "In pixels; never rounded. With height, and instead of resolution."
        ),
        "height": CreateField(Kind.WHOLE, "height", "In pixels; never rounded. With width."),
        "num_frames": CreateField(
            Kind.WHOLE, "num_frames", "Exactly so many frames; never rounded. 4k + 1 of them."
        ),
        "fps": CreateField(Kind.NUMBER, "fps", "Frames a second; the model's own."),
        "num_inference_steps": CreateField(Kind.WHOLE, "steps", "Denoising steps."),
        "guidance_scale": CreateField(Kind.NUMBER, "guidance_scale", "Classifier-free guidance."),
        "flow_shift": CreateField(Kind.NUMBER, "flow_shift", "Shift of the noise schedule."),
        "seed": CreateField(
            Kind.WHOLE,
            "seed",
            "The same seed, model version and settings make the same video. Drawn without it.",
            max_value=2**64 - 1,
        ),
        "quality": CreateField(
            Kind.TEXT,
            "quality",
            "auto: under load it may be drawn in fewer steps, and the answer says so.",
        ),
        "webhook_url": CreateField(
            Kind.TEXT,
            "webhook_url",
            "Told of the end, where the operators allow that; https.",
            option=True,
        ),
        "deadline_s": CreateField(
            Kind.NUMBER,
            "deadline_s",
            "Seconds after which the video is of no use; it is dropped from every queue then.",
            option=True,
        ),
        "priority": CreateField(
            Kind.TEXT,
            "priority",
            "interactive goes before batch. The tenant's without it, which is the highest that "
            "it may ask for.",
            option=True,
            choices=BY_NAME,
        ),
    }
)

# What people write by habit from elsewhere, where spelling alone does not find it.
_HABITS = {
    "text": "prompt",
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "shift": "flow_shift",
    "frames": "num_frames",
    "length_sec": "seconds",
    "duration": "seconds",
    "frame_rate": "fps",
}

_WHOLE = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")


class WrongValue(ValueError):  # noqa: N818 - caught where the field's name is known
    """A value breaks its field's type; the message says how."""

    def __init__(self, message: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.nearest = nearest


class OutsideField(WrongValue):
    """A number of the right type that breaks a rule of every model, or is not finite.

    ``value`` is the number. The application refuses it in the words of the model's rule.
    """

    def __init__(self, message: str, value: float) -> None:
        super().__init__(message)
        self.value = value


def unknown_field(name: str, *, first: bool = True) -> FieldViolation:
    """The violation of a field that does not exist, with the names closest to it.

    The first of an answer tells all names where none is close; its others need not.
    """
    # A form has the members of OpenAI's reference object in brackets: input_reference[file_id].
    if name.partition("[")[0] == "input_reference":
        return FieldViolation(
            "input_reference", "is not supported: videos are made from text alone"
        )
    habit = _HABITS.get(name)
    nearest = difflib.get_close_matches(name[:64], FIELDS, n=3, cutoff=0.6)
    if habit is not None:
        nearest = [habit, *(n for n in nearest if n != habit)]
    shown = name if len(name) <= 64 else name[:64] + "..."
    hint = "" if nearest or not first else f"; known are {', '.join(FIELDS)}"
    return FieldViolation(printable(shown), "is not a field of this request" + hint, tuple(nearest))


def parse_value(field: CreateField, value: Any, *, from_text: bool) -> Any:
    """A value as protobuf takes it.

    Args:
        field: What it must be.
        value: A JSON value, or the text of a form field.
        from_text: Whether it is a form field, whose numbers are written as text.

    Raises:
        OutsideField: It is a number that no model takes.
        WrongValue: It is something else.
    """
    if field.choices is not None:
        return _choice(_text(value), field.choices)
    if field.kind is Kind.TEXT:
        return _text(value)
    if from_text or (field.kind is Kind.SECONDS and isinstance(value, str)):
        value = _number_in(value, whole=field.kind is Kind.WHOLE)
    if field.kind is Kind.WHOLE:
        return _whole(value, field.max_value)
    return _number(value, field.kind)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValue(f"must be a string, not {_kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair; no UTF-8 text holds one.
        raise WrongValue("must be valid Unicode: it holds half of a surrogate pair") from None
    return value


def _choice(text: str, choices: Mapping[str, int]) -> int:
    if text not in choices:
        raise WrongValue(f"must be {' or '.join(choices)}", tuple(choices))
    return choices[text]


def _whole(value: Any, max_value: int) -> int:
    if isinstance(value, float) and value.is_integer():
        # It may have been rounded on its way into a float: 9007199254740993.0 is even here.
        raise WrongValue("must be a whole number in plain digits, without a point or an exponent")
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongValue(f"must be a whole number, not {_kind_of(value)}")
    if not 0 <= value <= max_value:
        raise OutsideField(f"must be between 0 and {max_value}", value)
    return value


def _number(value: Any, kind: Kind) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongValue(f"must be {kind.value}, not {_kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OutsideField("must be a finite number", number)
    if isinstance(value, int) and number != value:
        raise OutsideField(f"has more digits than are kept; the nearest is {int(number)}", number)
    return number


def _number_in(text: str, *, whole: bool) -> int | float:
    if whole:
        if not _WHOLE.fullmatch(text):
            raise WrongValue("must be a whole number in decimal digits")
        return int(text)
    if not _NUMBER.fullmatch(text):
        raise WrongValue("must be a finite number in decimal digits, such as 4 or 2.5")
    return float(text)


def _kind_of(value: Any) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a fraction" if math.isfinite(value) else str(value)
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def printable(name: str) -> str:
    """A client's own field name, safe to send back."""
    return "".join(c if c.isprintable() else "?" for c in name)
