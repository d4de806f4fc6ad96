import hashlib
import io
from fractions import Fraction

import av
import numpy as np
import pytest

from node_agent.engine.encode import MAX_CHUNK_BYTES, ChunkSink, Mp4Encoder, exact_rate


def encode(frames: np.ndarray, fps: float = 8.0, **options: int) -> tuple[bytes, ChunkSink]:
    chunks: list[tuple[int, bytes]] = []
    sink = ChunkSink(lambda offset, data: chunks.append((offset, data)))
    height, width = frames.shape[1:3]
    encoder = Mp4Encoder(sink, width=width, height=height, rate=exact_rate(fps), **options)
    encoder.write(frames[:1])
    for start in range(1, len(frames), 4):
        encoder.write(frames[start : start + 4])
    encoder.close()
    data = b"".join(data for _, data in chunks)
    offsets = [offset for offset, _ in chunks]
    assert offsets == [sum(len(d) for _, d in chunks[:i]) for i in range(len(chunks))]
    return data, sink


def noise(num_frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(
        0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8
    )
    return small.repeat(8, axis=1).repeat(8, axis=2)


def flat(color: tuple[int, int, int], num_frames: int = 5) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (num_frames, 64, 96, 3)).copy()


@pytest.mark.parametrize("num_frames", [1, 5, 17, 49])
@pytest.mark.parametrize("fps", [8.0, 24.0, 23.976])
def test_a_player_finds_the_exact_frames_rate_and_size(num_frames, fps):
    data, _ = encode(noise(num_frames), fps)

    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (96, 64)
        assert (stream.pix_fmt, len(frames)) == ("yuv420p", num_frames)
        times = [frame.pts * stream.time_base for frame in frames]
    rate = Fraction(24000, 1001) if fps == 23.976 else Fraction(fps)
    assert exact_rate(fps) == rate
    assert times == pytest.approx([float(i / rate) for i in range(num_frames)], abs=1e-4)


def test_digest_and_size_are_of_the_bytes():
    data, sink = encode(noise(9))

    assert sink.size_bytes == len(data)
    assert sink.sha256_hex() == hashlib.sha256(data).hexdigest()


def test_the_same_frames_give_the_same_bytes():
    assert encode(noise(17))[0] == encode(noise(17))[0]


def test_colours_survive_and_are_tagged():
    colors = {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (40, 90, 200)}
    for color in colors:
        data, _ = encode(flat(color), crf=10)
        with av.open(io.BytesIO(data)) as container:
            context = container.streams.video[0].codec_context
            tags = context.colorspace, context.color_range
            tags += context.color_primaries, context.color_trc
            frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
        # BT.709 at video range, in the numbers of ISO 23091-2.
        assert tags == (1, 1, 1, 1)
        # The decoder follows the tags; BT.601 would be off by 20 and more.
        assert np.abs(frame.astype(int) - np.array(color)).max() <= 6


def test_bytes_come_while_frames_are_still_going_in():
    seen: list[int] = []
    sink = ChunkSink(lambda offset, data: seen.append(offset + len(data)), monotonic=_ticks())
    encoder = Mp4Encoder(sink, width=96, height=64, rate=Fraction(8))
    counts = []
    for start in range(0, 20, 4):
        encoder.write(noise(4, seed=start))
        counts.append(seen[-1] if seen else 0)
    encoder.close()

    assert counts == sorted(set(counts))
    assert counts[1] > 1_000


def _ticks():
    """A clock on which every look is a second later."""
    now = iter(range(1, 10_000))
    return lambda: float(next(now))


def test_small_chunks_wait_and_large_ones_are_split():
    chunks: list[bytes] = []
    sink = ChunkSink(lambda _offset, data: chunks.append(data), monotonic=lambda: 0.0)

    sink.write(b"x" * 1000)
    sink.offer()
    assert chunks == []
    sink.write(b"x" * (2 * MAX_CHUNK_BYTES))
    sink.offer()

    assert [len(chunk) for chunk in chunks] == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 1000]


def test_fragments_hold_the_configured_latent_frames():
    def fragments(latent_frames: int) -> int:
        return encode(noise(33), latent_frames_per_fragment=latent_frames)[0].count(b"moof")

    assert (fragments(1), fragments(4)) == (9, 3)


def test_an_aborted_video_hands_on_nothing_more():
    chunks: list[bytes] = []
    sink = ChunkSink(lambda _offset, data: chunks.append(data), monotonic=_ticks())
    encoder = Mp4Encoder(sink, width=96, height=64, rate=Fraction(8))
    encoder.write(noise(9))
    before = len(chunks)

    encoder.abort()
    encoder.abort()
    sink.flush()

    assert len(chunks) == before
