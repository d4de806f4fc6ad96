"""The demo model's world: every clip it can be asked for, and how each is drawn.

A clip shows one flat shape on a flat background for 17 frames at 8 fps, 96 x 128 pixels. The world
is small and quantised on purpose. An object advances by a whole latent cell (16 px) or half of one
per latent frame (4 frames), a spin turns by one symmetry step of its shape per latent frame, and a
bounce lasts two latent frames. So the video autoencoder meets few distinct patterns, and the seed
chooses where the object is, never how it moves.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Final

FRAME_COUNT: Final = 17
FRAME_RATE: Final = 8
HEIGHT_PX: Final = 96
WIDTH_PX: Final = 128

Rgb = tuple[int, int, int]

COLORS: Final[dict[str, Rgb]] = {
    "red": (220, 40, 50),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 50),
    "green": (40, 170, 70),
    "cyan": (50, 210, 220),
    "blue": (40, 80, 225),
    "purple": (150, 60, 200),
    "pink": (250, 130, 190),
}
BACKGROUNDS: Final[dict[str, Rgb]] = {
    "white": (240, 240, 240),
    "black": (16, 16, 18),
    "grey": (110, 110, 110),
    "brown": (92, 58, 36),
}
SHAPES: Final = ("circle", "square", "triangle", "star")
SIZES_PX: Final[dict[str, int]] = {"small": 14, "big": 22}
MOTIONS: Final = (
    "left",
    "right",
    "up",
    "down",
    "bouncing",
    "spinning",
    "growing",
    "shrinking",
    "still",
)

_CENTER_X, _CENTER_Y = WIDTH_PX // 2, HEIGHT_PX // 2
# Turning by this much leaves the shape as it was; a circle would not be seen to turn at all.
SYMMETRY_DEG: Final[dict[str, float]] = {"square": 90.0, "triangle": 120.0, "star": 72.0}
_SWEEP_X_PX = 4  # per frame: one latent cell per latent frame
_SWEEP_Y_PX = 2  # per frame: half a cell, so that a big object stays inside the picture
_BOUNCE_PERIOD = 8
_BOUNCE_HEIGHT_PX = 32
_GROWTH = (0.6, 1.4)

# Where a motion may take place. The seed picks one; the prompt does not name it.
ANCHORS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "left": tuple((_CENTER_X, y) for y in (32, 48, 64)),
    "right": tuple((_CENTER_X, y) for y in (32, 48, 64)),
    "up": tuple((x, _CENTER_Y) for x in (32, 48, 64, 80, 96)),
    "down": tuple((x, _CENTER_Y) for x in (32, 48, 64, 80, 96)),
    "bouncing": tuple((x, _CENTER_Y) for x in (32, 48, 64, 80, 96)),
    "spinning": tuple((x, _CENTER_Y) for x in (48, 64, 80)),
    "growing": tuple((x, _CENTER_Y) for x in (48, 64, 80)),
    "shrinking": tuple((x, _CENTER_Y) for x in (48, 64, 80)),
    "still": tuple((x, _CENTER_Y) for x in (48, 64, 80)),
}


@dataclasses.dataclass(frozen=True, order=True)
class Scene:
    """What a prompt can name: one object, how it moves, and what is behind it."""

    color: str
    shape: str
    motion: str
    size: str
    background: str

    def __post_init__(self) -> None:
        """Refuse what cannot be seen or is not in the world."""
        if not is_visible(self.shape, self.motion):
            raise ValueError(f"a {self.shape} cannot be seen {self.motion}")
        known = (
            ("color", self.color, COLORS),
            ("shape", self.shape, SHAPES),
            ("motion", self.motion, MOTIONS),
            ("size", self.size, SIZES_PX),
            ("background", self.background, BACKGROUNDS),
        )
        for field, value, allowed in known:
            if value not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class Pose:
    """An object in one frame: centre and radius in pixels, angle in degrees (clockwise)."""

    x_px: float
    y_px: float
    radius_px: float
    angle_deg: float


def is_visible(shape: str, motion: str) -> bool:
    """Tell whether this motion of this shape can be told from standing still."""
    return motion != "spinning" or shape in SYMMETRY_DEG


def pose_at(scene: Scene, anchor: tuple[int, int], frame: int) -> Pose:
    """Place the scene's object in one frame (0 to 16) of a clip around ``anchor``."""
    x, y = anchor
    radius: float = SIZES_PX[scene.size]
    angle = 0.0
    middle = (FRAME_COUNT - 1) / 2
    match scene.motion:
        case "left":
            x = round(x - _SWEEP_X_PX * (frame - middle))
        case "right":
            x = round(x + _SWEEP_X_PX * (frame - middle))
        case "up":
            y = round(y - _SWEEP_Y_PX * (frame - middle))
        case "down":
            y = round(y + _SWEEP_Y_PX * (frame - middle))
        case "bouncing":
            phase = frame % _BOUNCE_PERIOD / _BOUNCE_PERIOD
            y = round(y + _BOUNCE_HEIGHT_PX * (0.5 - 4 * phase * (1 - phase)))
        case "spinning":
            angle = SYMMETRY_DEG[scene.shape] * frame / 4
        case "growing":
            radius *= _GROWTH[0] + (_GROWTH[1] - _GROWTH[0]) * frame / (FRAME_COUNT - 1)
        case "shrinking":
            radius *= _GROWTH[1] + (_GROWTH[0] - _GROWTH[1]) * frame / (FRAME_COUNT - 1)
    return Pose(x, y, radius, angle)


def all_scenes() -> Iterator[Scene]:
    """Yield every scene of the world once, in a fixed order."""
    for color, shape, motion, size, background in itertools.product(
        COLORS, SHAPES, MOTIONS, SIZES_PX, BACKGROUNDS
    ):
        if is_visible(shape, motion):
            yield Scene(color, shape, motion, size, background)


def is_held_out(scene: Scene) -> bool:
    """Tell whether training must never see this combination (about one in ten)."""
    name = "/".join(dataclasses.astuple(scene))
    return hashlib.sha256(name.encode()).digest()[0] < 26


def training_scenes() -> list[Scene]:
    """Return the scenes that training may see."""
    return [scene for scene in all_scenes() if not is_held_out(scene)]


def held_out_scenes(count: int, *, seed: int = 0) -> list[Scene]:
    """Return ``count`` scenes that training never saw, each shape and motion about as often."""
    pool = [scene for scene in all_scenes() if is_held_out(scene)]
    random.Random(seed).shuffle(pool)
    chosen: list[Scene] = []
    uses: dict[tuple[str, str], int] = {}
    while pool and len(chosen) < count:
        scene = min(pool, key=lambda item: uses.get((item.shape, item.motion), 0))
        pool.remove(scene)
        uses[scene.shape, scene.motion] = uses.get((scene.shape, scene.motion), 0) + 1
        chosen.append(scene)
    return chosen
