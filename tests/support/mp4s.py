"""Small real MP4s whose frames can be told apart."""

from __future__ import annotations

import io
from functools import cache

import av
from PIL import Image

FPS = 8


@cache
def graded_mp4(frames: int = 33, *, width: int = 128, height: int = 96) -> bytes:
    """A video that goes from black to white, as a node makes them: fragmented."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"movflags": "frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = Image.new("RGB", (width, height), (shade_of(number, frames),) * 3)
            # Noise that does not compress, so that there are some bytes.
            picture.paste(Image.effect_noise((16, 16), 90), (0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return sink.getvalue()


def shade_of(number: int, frames: int) -> int:
    """How light a frame is, 0 to 255."""
    return round(255 * number / max(frames - 1, 1))


def shade_at(picture: Image.Image, x: int, y: int) -> int:
    """How light a picture is there."""
    return picture.convert("L").getpixel((x, y))
