"""From the arguments of ``generate`` to the message that a gateway reads."""

from __future__ import annotations

from dataclasses import dataclass, fields

from reelmesh.v1 import video_pb2

from wan_t2v_sdk.errors import FieldViolation, InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """What is asked for; None leaves the choice to the model's manifest.

    Named sizes (``resolution="480p"``) and lengths in seconds resolve through the
    manifest and are echoed in the result. Explicit ``width``, ``height`` and
    ``num_frames`` are never rounded: what the model cannot do is refused, with the
    nearest values that it can.
    """

    prompt: str
    """1 to 2,000 characters, in any language that the model knows."""
    negative_prompt: str | None = None
    model: str | None = None
    """``name`` follows the region's rollout, ``name@version`` pins; None: the default."""
    resolution: str | None = None
    """A named size of the model; excludes width and height."""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    """4k+1 for Wan models."""
    seconds: float | None = None
    """Length; excludes num_frames."""
    fps: float | None = None
    """Must equal the model's own rate where it is given."""
    steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    seed: int | None = None
    """Drawn by the gateway where it is None; the result says which."""
    quality: str | None = None
    """``auto``: under load the video may be drawn in fewer steps; the result says so."""

    def to_spec(self) -> video_pb2.VideoSpec:
        """The message; rules of the model are left to the gateway.

        Raises:
            InvalidRequestError: A value has the wrong type, does not fit its field, or
                the text is not valid Unicode. Every such field is named.
        """
        spec = video_pb2.VideoSpec()
        violations = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            try:
                setattr(spec, each.name, value)
            except (TypeError, ValueError) as error:
                violations.append(FieldViolation(each.name, _explain(value, error)))
        if violations:
            text = "; ".join(f"{each.field}: {each.message}" for each in violations)
            raise InvalidRequestError(text, violations=tuple(violations))
        return spec


def _explain(value: object, error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "is not valid Unicode text: it holds a lone surrogate"
    if isinstance(error, TypeError):
        return f"has the wrong type, {type(value).__name__}"
    return f"does not fit its field: {value!r}"
