"""From MP4 bytes to frames."""

from __future__ import annotations

import importlib.util
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wan_t2v_sdk.errors import IntegrityError


def decode_rgb(video: IO[bytes], *, num_frames: int) -> npt.NDArray[np.uint8]:
    """All frames of an MP4.

    Args:
        video: A seekable file at its start.
        num_frames: How many frames there must be.

    Returns:
        uint8 array of shape [C, T, H, W] with C = 3 (red, green, blue), values 0 to 255.

    Raises:
        IntegrityError: The bytes are no video, or hold another number of frames.
    """
    import av  # 30 MB that a caller who only saves the file need not load

    frames: npt.NDArray[np.uint8] | None = None
    count = 0
    try:
        with av.open(video, mode="r") as container:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                if frames is None:
                    # Filled in place: a list and a stack would need the memory twice.
                    height, width, _ = picture.shape
                    frames = np.empty((3, num_frames, height, width), np.uint8)
                if count < num_frames:
                    frames[:, count] = picture.transpose(2, 0, 1)
                count += 1
    except av.error.FFmpegError as error:
        raise IntegrityError(f"the bytes cannot be decoded as a video: {error}") from None
    if frames is None or count != num_frames:
        raise IntegrityError(f"the video holds {count} frames, {num_frames} were announced")
    return frames


def torch_is_installed() -> bool:
    """Whether ``import torch`` would find it; does not import it."""
    return importlib.util.find_spec("torch") is not None


def to_torch(frames: npt.NDArray[np.uint8]) -> Any:
    """The same frames as a ``torch.Tensor`` that shares their memory."""
    import torch

    return torch.from_numpy(frames)
