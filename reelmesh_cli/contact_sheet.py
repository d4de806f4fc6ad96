"""A row of frames of a video as one PNG."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from wan_t2v_sdk.saving import save_whole

FRAMES = 8
MAX_HEIGHT_PX = 240
GAP_PX = 4


def sheet_of(frames: npt.NDArray[np.uint8], *, count: int = FRAMES) -> npt.NDArray[np.uint8]:
    """Evenly spaced frames side by side, the first and the last among them.

    Args:
        frames: uint8, shape [3, T, H, W].
        count: How many, at most as many as there are.

    Returns:
        uint8 array of shape [height, width, 3]; tall frames are thinned to at most
        ``MAX_HEIGHT_PX`` rows.
    """
    total, height = frames.shape[1], frames.shape[2]
    picked = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    stride = max(1, -(-height // MAX_HEIGHT_PX))
    small = frames[:, picked, ::stride, ::stride].transpose(1, 2, 3, 0)
    gap = np.full((small.shape[1], GAP_PX, 3), 255, np.uint8)
    parts: list[npt.NDArray[np.uint8]] = []
    for number, picture in enumerate(small):
        parts += [gap, picture] if number else [picture]
    return np.concatenate(parts, axis=1)


def write_sheet(frames: npt.NDArray[np.uint8], path: Path, *, count: int = FRAMES) -> None:
    """Writes the sheet of ``frames`` as a PNG, whole or not at all.

    Raises:
        OSError: The folder is missing or cannot be written.
    """
    sheet = np.ascontiguousarray(sheet_of(frames, count=count))
    sink = io.BytesIO()
    with av.open(sink, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = sheet.shape[:2]
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(sheet, format="rgb24")))
        container.mux(stream.encode(None))
    save_whole(path, lambda target: target.write(sink.getvalue()))
