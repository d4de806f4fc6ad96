"""Draws true clips of the demo world: anti-aliased, exact, and fast enough to feed training."""

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from tools.demo_model.world import (
    BACKGROUNDS,
    COLORS,
    FRAME_COUNT,
    HEIGHT_PX,
    WIDTH_PX,
    Pose,
    Scene,
    pose_at,
)

Alpha = npt.NDArray[np.float32]
_EDGE_PX: Final = 1.5  # width of the soft edge: a codec and an autoencoder both keep it


def _polygon(shape: str, radius: float, angle_deg: float) -> npt.NDArray[np.float64]:
    """Return the corners [N, 2] (x right, y down) of a shape around the origin."""
    if shape == "square":
        turns = np.arange(4) * 90.0 + 45.0
        radii = np.full(4, 0.88 * radius * np.sqrt(2))
    elif shape == "triangle":
        turns = np.arange(3) * 120.0 - 90.0
        radii = np.full(3, 1.3 * radius)
    elif shape == "star":
        turns = np.arange(10) * 36.0 - 90.0
        radii = np.where(np.arange(10) % 2 == 0, 1.35, 0.62) * radius
    else:
        raise ValueError(f"{shape!r} is no polygon")
    theta = np.deg2rad(turns + angle_deg)
    return np.stack([radii * np.cos(theta), radii * np.sin(theta)], axis=1)


def _polygon_distance(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], corners: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the signed distance of each point to a polygon: negative inside."""
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        squared = np.minimum(squared, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey != 0:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


@functools.lru_cache(maxsize=4096)
def sprite(shape: str, radius_px: float, angle_deg: float) -> Alpha:
    """Return the coverage [S, S] of a shape centred in a square of odd side S."""
    reach = int(np.ceil(1.4 * radius_px)) + 2
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    if shape == "circle":
        distance = np.hypot(x, y) - radius_px
    else:
        distance = _polygon_distance(x, y, _polygon(shape, radius_px, angle_deg))
    coverage: Alpha = np.clip(0.5 - distance / _EDGE_PX, 0.0, 1.0).astype(np.float32)
    coverage.flags.writeable = False
    return coverage


def coverage_at(shape: str, pose: Pose) -> Alpha:
    """Return how much of each pixel [H, W] the object covers, 0 to 1."""
    stamp = sprite(shape, round(pose.radius_px, 4), round(pose.angle_deg % 360.0, 4))
    reach = stamp.shape[0] // 2
    canvas: Alpha = np.zeros((HEIGHT_PX + 2 * reach, WIDTH_PX + 2 * reach), dtype=np.float32)
    x, y = round(pose.x_px), round(pose.y_px)
    canvas[y : y + stamp.shape[0], x : x + stamp.shape[1]] = stamp
    return canvas[reach : reach + HEIGHT_PX, reach : reach + WIDTH_PX]


def clip_coverage(scene: Scene, anchor: tuple[int, int]) -> Alpha:
    """Return the object's coverage [17, H, W] over a whole clip."""
    poses = (pose_at(scene, anchor, frame) for frame in range(FRAME_COUNT))
    return np.stack([coverage_at(scene.shape, pose) for pose in poses])


def render_clip(scene: Scene, anchor: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a true clip [17, H, W, 3] of 8-bit RGB."""
    coverage = clip_coverage(scene, anchor)[..., None]
    ground = np.asarray(BACKGROUNDS[scene.background], dtype=np.float32)
    paint = np.asarray(COLORS[scene.color], dtype=np.float32)
    return np.rint(ground + coverage * (paint - ground)).astype(np.uint8)
