"""Says what a clip shows, by plain image processing: no learned judge, no knowledge of the prompt.

The background is the median of the picture's rim, the object what differs from it. Colours are the
nearest of the palette, the shape is the template that overlaps best, and the motion is read from
the tracks of centre, area and angle.
"""

import dataclasses
import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tools.demo_model.render import sprite
from tools.demo_model.world import BACKGROUNDS, COLORS, SHAPES, SIZES_PX, Rgb, Scene

Clip = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

NONE: Final = "none"  # nothing that can be named is seen
_CONTRAST_RGB: Final = 45.0  # a pixel this far from the background is no background
_LEAST_AREA_PX: Final = 60
_CANVAS_PX: Final = 49  # templates and objects are compared at one size, of radius 16
_LEAST_OVERLAP: Final = 0.80
_AREA_PER_RADIUS_SQUARED: Final = {"circle": 3.14, "square": 3.10, "triangle": 2.20, "star": 2.46}
# The rotational symmetry whose moment tells a shape's angle.
_FOLDS: Final = {"square": 4, "triangle": 3, "star": 5}


@dataclasses.dataclass(frozen=True)
class Sight:
    """What is seen in a clip.

    Attributes:
        color, shape, motion, size, background: names of the world, or "none".
        background_sigma: spread of the background's pixels, in 1/255, worst channel.
        object_sigma: the same inside the object.
        stray_share: share of all pixels that differ from the background away from the object.
    """

    color: str
    shape: str
    motion: str
    size: str
    background: str
    background_sigma: float
    object_sigma: float
    stray_share: float

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """Compare with what was asked for, attribute by attribute."""
        names = ("color", "shape", "motion", "size", "background")
        return {name: getattr(self, name) == getattr(scene, name) for name in names}


def _nearest(color: Floats, palette: dict[str, Rgb]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(color - np.asarray(palette[name]))))


def _grow(mask: Mask, pixels: int) -> Mask:
    for _ in range(pixels):
        wider = mask.copy()
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        wider[:, :, 1:] |= mask[:, :, :-1]
        wider[:, :, :-1] |= mask[:, :, 1:]
        mask = wider
    return mask


def _largest_parts(mask: Mask) -> Mask:
    """Keep each frame's largest 4-connected part."""
    labels = np.arange(1, mask.size + 1, dtype=np.int64).reshape(mask.shape) * mask
    while True:
        before = labels
        wider = labels.copy()
        np.maximum(wider[:, 1:], labels[:, :-1], out=wider[:, 1:])
        np.maximum(wider[:, :-1], labels[:, 1:], out=wider[:, :-1])
        np.maximum(wider[:, :, 1:], wider[:, :, :-1].copy(), out=wider[:, :, 1:])
        np.maximum(wider[:, :, :-1], wider[:, :, 1:].copy(), out=wider[:, :, :-1])
        labels = wider * mask
        if np.array_equal(before, labels):
            break
    kept = np.zeros_like(mask)
    for frame, own in enumerate(labels):
        names, counts = np.unique(own[own > 0], return_counts=True)
        if names.size:
            kept[frame] = own == names[counts.argmax()]
    return kept


@functools.cache
def _templates() -> dict[str, Floats]:
    """Return each shape's outlines [N, S * S] at radius-16 area, over all its angles."""
    outlines = {}
    for shape in SHAPES:
        fold = 360.0 / _FOLDS.get(shape, 360)
        angles = [0.0] if shape == "circle" else list(np.arange(0.0, fold, 6.0))
        views = [_normalised(sprite(shape, 16.0, angle).astype(np.float64)) for angle in angles]
        outlines[shape] = np.stack([view.ravel() for view in views])
    return outlines


def _normalised(cover: Floats) -> Floats:
    """Resample one frame's coverage around its centre to the common size."""
    height, width = cover.shape
    area = cover.sum()
    y_axis, x_axis = np.arange(height), np.arange(width)
    center_y = (cover.sum(axis=1) * y_axis).sum() / area
    center_x = (cover.sum(axis=0) * x_axis).sum() / area
    scale = np.sqrt(area / (np.pi * 16.0**2))
    offsets = (np.arange(_CANVAS_PX) - _CANVAS_PX // 2) * scale
    rows = _bilinear_weights(center_y + offsets, height)
    columns = _bilinear_weights(center_x + offsets, width)
    view: Floats = rows @ cover @ columns.T
    return view


def _bilinear_weights(positions: Floats, size: int) -> Floats:
    distance = np.abs(positions[:, None] - np.arange(size)[None])
    return np.clip(1.0 - distance, 0.0, 1.0)


def _shape_of(views: list[Floats]) -> str:
    """Name the shape whose templates overlap best, on the mean over frames."""
    best, best_overlap = NONE, _LEAST_OVERLAP
    for shape, outlines in _templates().items():
        overlaps = []
        for view in views:
            flat = view.ravel()[None]
            both = np.minimum(outlines, flat).sum(axis=1)
            overlaps.append((both / np.maximum(outlines, flat).sum(axis=1)).max())
        overlap = float(np.mean(overlaps))
        if overlap > best_overlap:
            best, best_overlap = shape, overlap
    return best


def _turns(views: list[Floats], shape: str) -> float:
    """Return how many symmetry steps the shape turned by over the clip (clockwise positive)."""
    if shape not in _FOLDS:
        return 0.0
    axis = np.arange(_CANVAS_PX) - _CANVAS_PX // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    ring = np.hypot(x, y) ** 2 * np.exp(1j * _FOLDS[shape] * np.arctan2(y, x))
    phases = np.unwrap([np.angle((view * ring).sum()) for view in views])
    return float(phases[-1] - phases[0]) / (2 * np.pi)


def _motion_of(centers: Floats, areas: Floats, turned: float) -> str:
    """Name the motion from tracks of centre [T, 2] (x, y in px) and area [T], and the turning."""
    growth = float(areas[-3:].mean() / areas[:3].mean())
    moved_x, moved_y = centers[-1] - centers[0]
    range_y = float(np.ptp(centers[:, 1]))
    steps = np.diff(centers[:, 1])
    steps = steps[np.abs(steps) > 1.0]
    reversals = int((np.sign(steps[1:]) != np.sign(steps[:-1])).sum())
    if growth > 1.8 or growth < 1 / 1.8:
        return "growing" if growth > 1 else "shrinking"
    if range_y > 16 and reversals >= 2:
        return "bouncing"
    if abs(moved_x) > 24 and abs(moved_x) > abs(moved_y):
        return "right" if moved_x > 0 else "left"
    if abs(moved_y) > 14:
        return "down" if moved_y > 0 else "up"
    if abs(turned) > 2:
        return "spinning"
    return "still" if abs(moved_x) < 8 and range_y < 8 and abs(turned) < 0.5 else NONE


def _spread(pixels: Floats) -> float:
    return float(pixels.std(axis=0).max()) if len(pixels) else 0.0


def _nothing(background: str, sigma: float) -> Sight:
    return Sight(NONE, NONE, NONE, NONE, background, sigma, 0.0, 0.0)


def look_at(clip: Clip) -> Sight:
    """Say what a clip [T, H, W, 3] of 8-bit RGB shows."""
    pixels: Any = clip.astype(np.float64)
    rim = np.concatenate(
        [
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
            pixels[:, :, :2].reshape(-1, 3),
        ]
    )
    ground = np.median(rim, axis=0)
    background = _nearest(ground, BACKGROUNDS)
    differs = np.abs(pixels - ground).max(axis=-1) > _CONTRAST_RGB
    part = _largest_parts(differs)
    inner = ~_grow(~part, 3)
    if part.sum(axis=(1, 2)).min() < _LEAST_AREA_PX or not inner.any():
        return _nothing(background, _spread(pixels[~_grow(differs, 4)]))
    paint = np.median(pixels[inner], axis=0)
    contrast = paint - ground
    cover = np.clip((pixels - ground) @ contrast / (contrast @ contrast), 0.0, 1.0)
    cover *= _grow(part, 2)
    areas = cover.sum(axis=(1, 2))
    y_axis, x_axis = np.arange(clip.shape[1]), np.arange(clip.shape[2])
    centers = np.stack(
        [(cover.sum(axis=1) * x_axis).sum(axis=1), (cover.sum(axis=2) * y_axis).sum(axis=1)], axis=1
    )
    centers /= areas[:, None]
    views = [_normalised(frame) for frame in cover]
    shape = _shape_of(views)
    per_radius = _AREA_PER_RADIUS_SQUARED.get(shape, np.pi)
    radius = float(np.sqrt(areas / per_radius).mean())
    return Sight(
        color=_nearest(paint, COLORS),
        shape=shape,
        motion=_motion_of(centers, areas, _turns(views, shape)),
        size=min(SIZES_PX, key=lambda name: abs(SIZES_PX[name] - radius)),
        background=background,
        background_sigma=_spread(pixels[~_grow(differs, 4)]),
        object_sigma=_spread(pixels[inner]),
        stray_share=float((differs & ~_grow(part, 3)).mean()),
    )
