"""Draws a picture of a video, in a process of its own: what a bad file breaks is this alone.

Reads an MP4 from standard input and writes a JPEG to standard output, a pipe::

    python -m gateway.output.picture_child thumbnail 121 20 < video.mp4 | cat > picture.jpg

The arguments are the kind, the video's number of frames and the seconds of CPU that it may
take. Time, memory, frames and pixels are bounded; what is over a bound ends with status 1 and
a line on standard error.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

import av
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image

THUMBNAIL: Final = "thumbnail"
SPRITESHEET: Final = "spritesheet"
KINDS: Final = (THUMBNAIL, SPRITESHEET)

THUMBNAIL_PX: Final = 640
"""The longer side at most; a smaller video is not enlarged."""
CELL_PX: Final = 320
"""Likewise, of each frame of a sheet."""
CELLS: Final = 16
COLUMNS: Final = 4
QUALITY: Final = 85

# 4096 x 4096, some minutes at 24 frames a second, and what such frames need to be decoded.
_MAX_PIXELS: Final = 4096 * 4096
_MAX_FRAMES: Final = 10_000
_MAX_MEMORY_BYTES: Final = 2 * 1024**3


class BadVideo(Exception):  # noqa: N818 - named for what it says
    """It is no video, or over a bound."""


def chosen(num_frames: int, cells: int) -> tuple[int, ...]:
    """Frames spread evenly from the first to the last, each once; the middle one of one."""
    if num_frames <= cells:
        return tuple(range(num_frames))
    if cells == 1:
        return (num_frames // 2,)
    return tuple(round(cell * (num_frames - 1) / (cells - 1)) for cell in range(cells))


def draw(file: BinaryIO, kind: str, num_frames: int) -> bytes:
    """The picture of a video of about so many frames, as a JPEG.

    Raises:
        BadVideo: It cannot be decoded, or is too large.
    """
    cells, side = (1, THUMBNAIL_PX) if kind == THUMBNAIL else (CELLS, CELL_PX)
    wanted = chosen(max(num_frames, 1), cells)
    try:
        frames = list(_frames(file, wanted, side))
    except (FFmpegError, ValueError, EOFError) as error:
        raise BadVideo(f"cannot be decoded: {error}") from error
    if not frames:
        raise BadVideo("has no frame")
    picture = frames[0] if cells == 1 else _sheet(frames)
    found = io.BytesIO()
    picture.save(found, "JPEG", quality=QUALITY)
    return found.getvalue()


def _frames(file: BinaryIO, wanted: Sequence[int], side: int) -> Iterator[Image.Image]:
    # The one demuxer: some others would open what a file names.
    with av.open(file, "r", format="mp4") as container:
        if not container.streams.video:
            raise BadVideo("has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        last: VideoFrame | None = None
        found = 0
        for number, frame in enumerate(container.decode(stream)):
            if frame.width * frame.height > _MAX_PIXELS or number >= _MAX_FRAMES:
                raise BadVideo("is too large")
            last = frame
            if number == wanted[found]:
                yield _scaled(frame, side)
                found += 1
                if found == len(wanted):
                    return
        if not found and last is not None:
            # It is shorter than it was said to be.
            yield _scaled(last, side)


def _scaled(frame: VideoFrame, side: int) -> Image.Image:
    factor = min(1.0, side / max(frame.width, frame.height))
    width, height = (max(1, round(factor * each)) for each in (frame.width, frame.height))
    # PyAV's stubs say nothing of it.
    picture: Image.Image = frame.to_image(width=width, height=height)  # type: ignore[no-untyped-call]
    return picture


def _sheet(frames: Sequence[Image.Image]) -> Image.Image:
    width, height = frames[0].size
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for cell, frame in enumerate(frames):
        sheet.paste(frame, (cell % columns * width, cell // columns * height))
    return sheet


def _bound(cpu_s: int) -> None:
    """From here on this process takes no more than that."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    # It writes no file, and leaves no core with a tenant's frames behind.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """The process."""
    kind, num_frames, cpu_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _bound(cpu_s)
    try:
        sys.stdin.buffer.seek(0)
        picture = draw(sys.stdin.buffer, kind, num_frames)
    except (BadVideo, MemoryError) as error:
        sys.stderr.write(f"{str(error) or 'takes too much memory'}\n")
        return 1
    sys.stdout.buffer.write(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
