"""Draws training curves as PNG with nothing but pillow."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

_PANEL_PX: Final = (640, 200)
_MARGIN_PX: Final = 48


def _panel(
    draw: ImageDraw.ImageDraw, top: int, name: str, points: Sequence[tuple[int, float]]
) -> None:
    width, height = _PANEL_PX
    logarithmic = name == "loss" and min(value for _, value in points) > 0
    values = [math.log10(value) if logarithmic else value for _, value in points]
    low, high = min(values), max(values)
    span, steps = (high - low) or 1.0, points[-1][0] or 1
    left, bottom = _MARGIN_PX, top + height - 24
    draw.rectangle((left, top + 20, width - 12, bottom), outline=(190, 190, 190))
    line = [
        (
            left + (width - 12 - left) * step / steps,
            bottom - (bottom - top - 20) * (value - low) / span,
        )
        for (step, _), value in zip(points, values, strict=True)
    ]
    if len(line) > 1:
        draw.line(line, fill=(30, 90, 200), width=2)
    scale = (lambda value: 10**value) if logarithmic else (lambda value: value)
    draw.text((left, top + 4), f"{name} (last {points[-1][1]:.4g})", fill=(0, 0, 0))
    draw.text((4, top + 20), f"{scale(high):.3g}", fill=(90, 90, 90))
    draw.text((4, bottom - 10), f"{scale(low):.3g}", fill=(90, 90, 90))
    draw.text((width - 60, bottom + 4), str(points[-1][0]), fill=(90, 90, 90))


def draw_curves(figures: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Write one panel per figure, over steps; nothing is written when there is no figure."""
    shown = {name: points for name, points in figures.items() if points}
    if not shown:
        return
    width, height = _PANEL_PX
    image = Image.new("RGB", (width, height * len(shown)), "white")
    draw = ImageDraw.Draw(image)
    for index, (name, points) in enumerate(shown.items()):
        _panel(draw, index * height, name, points)
    draft = path.with_name(f".{path.name}")
    image.save(draft, format="PNG")
    draft.replace(path)
