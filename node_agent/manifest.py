"""The manifest beside a model's weights: what the model is, and what it can do.

``manifest.json`` names every file of the folder with its sha256 and size, so that the
sha256 of the manifest itself identifies these exact weights. It also states the rules
that requests are held to; :meth:`Manifest.to_model_info` is what gateways see of it.

Torch-free: agent and tools import it. Reading and checking files is in
:mod:`node_agent.model_folder`.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from reelmesh.v1 import model_pb2
from reelmesh.v1.video_pb2 import ResolvedSpec

MANIFEST_NAME = "manifest.json"

# Formats that hold data and nothing that runs. Pickles (.bin, .pt, .ckpt) and code are
# refused by not being listed.
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})

# The VAE's spatial factor times the transformer's patch: 16 * 2.
GRID_PX = 32

# The VAE's temporal factor: frame counts are 4k + 1.
TEMPORAL_STEP = 4

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,31}")


def _check_file_path(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or str(path) != text:
        raise ValueError(f"{text!r} must be a plain path inside the model's folder")
    if path.suffix not in ALLOWED_SUFFIXES:
        kinds = ", ".join(sorted(ALLOWED_SUFFIXES))
        raise ValueError(f"{text!r} is of a kind that is not accepted; accepted are {kinds}")
    if text == MANIFEST_NAME:
        raise ValueError("the manifest does not list itself")
    return text


def _check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-', a letter or digit first"
        )
    return text


Name = Annotated[str, AfterValidator(_check_name)]
FilePath = Annotated[str, AfterValidator(_check_file_path)]
Dtype = Literal["float32", "bfloat16", "float16"]


class SpecRefusedError(Exception):
    """A request that this model cannot serve as it stands; it fits nowhere else either."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Part):
    """One file of the folder."""

    path: FilePath = Field(description="POSIX path relative to the manifest's folder.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Size(_Part):
    """A frame size in pixels, on the model's grid."""

    width_px: int = Field(ge=GRID_PX, le=8192, multiple_of=GRID_PX)
    height_px: int = Field(ge=GRID_PX, le=8192, multiple_of=GRID_PX)

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"


class FrameRule(_Part):
    """Allowed frame counts: min, min + step, ..., max; each 4k + 1."""

    min: int = Field(ge=1, le=10_001)
    max: int = Field(ge=1, le=10_001)
    step: int = Field(default=TEMPORAL_STEP, ge=1)

    @model_validator(mode="after")
    def _on_the_vae_grid(self) -> Self:
        if self.step % TEMPORAL_STEP or self.min % TEMPORAL_STEP != 1:
            raise ValueError("frames must be 4k + 1: min of that form, step a multiple of 4")
        if self.max < self.min or (self.max - self.min) % self.step:
            raise ValueError("frames.max must be min plus a whole number of steps")
        return self

    def allows(self, num_frames: int) -> bool:
        """Whether the count is one of the rule's."""
        return self.min <= num_frames <= self.max and (num_frames - self.min) % self.step == 0

    def nearest(self, num_frames: float) -> int:
        """The allowed count nearest to a wish; the smaller one at a tie."""
        steps = math.ceil((num_frames - self.min) / self.step - 0.5)
        return min(max(self.min + steps * self.step, self.min), self.max)


class SecondsRule(_Part):
    """Wishes in seconds that resolve to the nearest allowed frame count."""

    min_s: float = Field(gt=0)
    max_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_s < self.min_s:
            raise ValueError("seconds.max_s must not be below seconds.min_s")
        return self


class IntRange(_Part):
    """Whole numbers from min to max, both allowed."""

    min: int = Field(ge=1)
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError("max must not be below min")
        return self


class FloatRange(_Part):
    """Numbers from min to max, both allowed."""

    min: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError("max must not be below min")
        return self

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range; NaN does not."""
        return self.min <= value <= self.max


class Defaults(_Part):
    """What an unset field of a request becomes."""

    size: Size
    num_frames: int
    steps: int
    guidance_scale: float
    flow_shift: float
    negative_prompt: str = ""


class GoldenProbe(_Part):
    """A fixed request whose video must show the stated attributes.

    Attributes and not bytes: floats differ between processors.
    """

    name: Name
    prompt: str = Field(min_length=1, max_length=2_000)
    seed: int = Field(ge=0, lt=2**64)
    steps: int | None = Field(default=None, ge=1)
    num_frames: int | None = Field(default=None, ge=1)
    expect: dict[str, str | float] = Field(
        default_factory=dict, description="Attribute to value, such as color: red."
    )


class ComponentDtypes(_Part):
    """The number format that each component is loaded in."""

    transformer: Dtype = "bfloat16"
    text_encoder: Dtype = "bfloat16"
    vae: Dtype = Field(default="float32", description="Wan's VAE loses detail below float32.")


class Manifest(_Part):
    """A model version and the rules of its requests; unknown fields are refused."""

    format: Literal[1] = 1
    name: Name
    version: Name
    description: str = Field(default="", max_length=2_000)
    pipeline_class: Literal["WanPipeline"] = "WanPipeline"
    files: tuple[FileEntry, ...] = Field(min_length=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    size_aliases: dict[str, Size] = Field(default_factory=dict)
    frames: FrameRule
    fps: float = Field(gt=0, le=240)
    seconds: SecondsRule
    steps: IntRange
    guidance_scale: FloatRange
    flow_shift: FloatRange
    defaults: Defaults
    max_sequence_length: int = Field(
        ge=1, le=4096, description="Tokens that a prompt is padded to; equal in training."
    )
    max_prompt_chars: int = Field(default=2_000, ge=1, le=2_000)
    dtypes: ComponentDtypes = ComponentDtypes()
    vram_gb: float = Field(ge=0)
    golden_probes: tuple[GoldenProbe, ...] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for what, names in (
            ("files", [entry.path for entry in self.files]),
            ("sizes", [str(size) for size in self.sizes]),
            ("golden_probes", [probe.name for probe in self.golden_probes]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is listed twice")
        for alias, size in self.size_aliases.items():
            if not _ALIAS.fullmatch(alias):
                raise ValueError(f"size_aliases: {alias!r} is no short plain name")
            if size not in self.sizes:
                raise ValueError(f"size_aliases: {alias!r} names {size}, which is not in sizes")
        if self.flow_shift.min <= 0:
            raise ValueError("flow_shift.min must be above 0")
        defaults = self.defaults
        try:
            self._check(
                size=defaults.size,
                num_frames=defaults.num_frames,
                steps=defaults.steps,
                guidance_scale=defaults.guidance_scale,
                flow_shift=defaults.flow_shift,
            )
        except SpecRefusedError as error:
            raise ValueError(f"defaults: {error}") from None
        return self

    def check_spec(self, spec: ResolvedSpec) -> None:
        """Returns if this model can run the request exactly as it stands.

        A gateway has checked it before; this is the last gate in front of the device.

        Raises:
            SpecRefusedError: Names the field, the rule and the nearest valid value.
        """
        if (spec.model, spec.model_version) != (self.name, self.version):
            raise SpecRefusedError(
                f"model: {spec.model}@{spec.model_version} was asked for, "
                f"{self.name}@{self.version} is loaded"
            )
        if spec.fps != self.fps:
            raise SpecRefusedError(f"fps: {spec.fps:g} is not the model's rate, {self.fps:g}")
        if not spec.prompt.strip():
            raise SpecRefusedError("prompt: must not be empty")
        for field in ("prompt", "negative_prompt"):
            if len(getattr(spec, field)) > self.max_prompt_chars:
                raise SpecRefusedError(f"{field}: at most {self.max_prompt_chars} characters")
        if spec.width % GRID_PX or spec.height % GRID_PX or not (spec.width and spec.height):
            raise SpecRefusedError(
                f"width, height: {spec.width}x{spec.height} must be multiples of {GRID_PX}"
            )
        self._check(
            size=Size(width_px=spec.width, height_px=spec.height),
            num_frames=spec.num_frames,
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            flow_shift=spec.flow_shift,
        )

    def _check(
        self, *, size: Size, num_frames: int, steps: int, guidance_scale: float, flow_shift: float
    ) -> None:
        if size not in self.sizes:
            choices = ", ".join(map(str, self.sizes))
            raise SpecRefusedError(f"width, height: {size} is none of the model's sizes: {choices}")
        if not self.frames.allows(num_frames):
            rule = self.frames
            raise SpecRefusedError(
                f"num_frames: {num_frames} is not in {rule.min}, {rule.min + rule.step}, ..., "
                f"{rule.max}; nearest is {rule.nearest(num_frames)}"
            )
        if not self.steps.min <= steps <= self.steps.max:
            raise SpecRefusedError(
                f"steps: {steps} is outside {self.steps.min} to {self.steps.max}"
            )
        for field, value, allowed in (
            ("guidance_scale", guidance_scale, self.guidance_scale),
            ("flow_shift", flow_shift, self.flow_shift),
        ):
            if not allowed.allows(value):
                raise SpecRefusedError(
                    f"{field}: {value:g} is outside {allowed.min:g} to {allowed.max:g}"
                )

    def to_model_info(self, *, manifest_sha256: str) -> model_pb2.ModelInfo:
        """What gateways and clients see of this version."""
        defaults = self.defaults
        return model_pb2.ModelInfo(
            name=self.name,
            version=self.version,
            manifest_sha256=manifest_sha256,
            pipeline_class=self.pipeline_class,
            sizes=[_size(size) for size in self.sizes],
            size_aliases=[
                model_pb2.SizeAlias(alias=alias, size=_size(size))
                for alias, size in self.size_aliases.items()
            ],
            frames=model_pb2.FrameRule(
                min=self.frames.min, max=self.frames.max, step=self.frames.step
            ),
            fps=self.fps,
            seconds=model_pb2.SecondsRule(min_s=self.seconds.min_s, max_s=self.seconds.max_s),
            steps=model_pb2.IntRange(min=self.steps.min, max=self.steps.max),
            guidance_scale=_range(self.guidance_scale),
            flow_shift=_range(self.flow_shift),
            defaults=model_pb2.GenerationDefaults(
                size=_size(defaults.size),
                num_frames=defaults.num_frames,
                steps=defaults.steps,
                guidance_scale=defaults.guidance_scale,
                flow_shift=defaults.flow_shift,
                negative_prompt=defaults.negative_prompt,
            ),
            vram_gb=self.vram_gb,
            max_prompt_chars=self.max_prompt_chars,
            description=self.description,
        )


def _size(size: Size) -> model_pb2.VideoSize:
    return model_pb2.VideoSize(width_px=size.width_px, height_px=size.height_px)


def _range(allowed: FloatRange) -> model_pb2.DoubleRange:
    return model_pb2.DoubleRange(min=allowed.min, max=allowed.max)
