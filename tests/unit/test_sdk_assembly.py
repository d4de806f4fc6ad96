import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import video_pb2

from wan_t2v_sdk import CancelledVideoError, DeadlineError, GenerationFailedError, ServerError
from wan_t2v_sdk.assembly import Assembly
from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.errors import IntegrityError

ATTEMPT = 2**32


@pytest.fixture
def assembly():
    buffer = VideoBuffer()
    yield Assembly(buffer)
    buffer.close()


def event(seq=0, **body):
    return video_pb2.VideoEvent(seq=seq, video_id="ap-1", **body)


def chunk(attempt, offset, data):
    return event(chunk=video_pb2.ChunkEvent(attempt=attempt, offset=offset, data=data))


def test_bytes_of_one_attempt_are_put_together(assembly):
    assembly.accept(event(started=video_pb2.StartedEvent(region="ap", node="n", attempt=1)))
    assembly.accept(chunk(1, 0, b"ab"))
    assembly.accept(chunk(1, 2, b"cd"))
    assert assembly.buffer.read() == b"abcd"
    assert (assembly.region, assembly.node, assembly.restarts) == ("ap", "n", 0)


def test_a_restart_throws_earlier_bytes_away(assembly):
    assembly.accept(chunk(1, 0, b"old"))
    assembly.accept(event(restarted=video_pb2.RestartedEvent(attempt=2)))
    assert assembly.buffer.size_bytes == 0
    assembly.accept(chunk(1, 3, b"late"))
    assembly.accept(chunk(2, 0, b"new"))
    assert assembly.buffer.read() == b"new"
    assert assembly.restarts == 1


def test_a_later_attempt_needs_no_notice(assembly):
    assembly.accept(chunk(1, 0, b"old"))
    assembly.accept(chunk(3, 0, b"new"))
    assert assembly.buffer.read() == b"new"


def test_bytes_that_come_twice_count_once(assembly):
    assembly.accept(chunk(1, 0, b"abcd"))
    assembly.accept(chunk(1, 2, b"cdef"))
    assert assembly.buffer.read() == b"abcdef"


def test_a_gap_is_an_error_that_a_retry_cures(assembly):
    assembly.accept(chunk(1, 0, b"ab"))
    with pytest.raises(ServerError) as caught:
        assembly.accept(chunk(1, 3, b"d"))
    assert caught.value.retryable
    assembly.rewind()
    assembly.accept(chunk(1, 0, b"abcd"))
    assert assembly.buffer.read() == b"abcd"


def test_another_video_under_the_same_key_starts_from_nothing(assembly):
    assembly.accept(chunk(1, 0, b"old"))
    assembly.accept(video_pb2.VideoEvent(seq=ATTEMPT + 1, video_id="ap-2"))
    assert assembly.video_id == "ap-2"
    assert assembly.buffer.size_bytes == 0


def test_the_last_seq_only_rises(assembly):
    for seq in (ATTEMPT + 1, 0, ATTEMPT + 5, ATTEMPT + 2):
        assembly.accept(event(seq=seq, progress=video_pb2.ProgressEvent(step=1)))
    assert assembly.last_seq == ATTEMPT + 5


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"failed": video_pb2.FailedEvent(code="poison", message="m")}, GenerationFailedError),
        ({"cancelled": video_pb2.CancelledEvent(reason="operator")}, CancelledVideoError),
        ({"cancelled": video_pb2.CancelledEvent(reason="deadline")}, DeadlineError),
    ],
)
def test_other_ends_are_errors(assembly, body, kind):
    assembly.accept(event(**body))
    assert assembly.over
    assert isinstance(assembly.error, kind)


def test_an_unknown_event_of_a_newer_gateway_is_passed_over(assembly):
    assembly.accept(event(seq=ATTEMPT + 1))
    assert not assembly.over


@given(
    st.binary(max_size=300),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), max_size=20),
    st.integers(0, 64),
)
def test_any_overlapping_pieces_give_the_bytes(data, cuts, memory_limit_bytes):
    buffer = VideoBuffer(memory_limit_bytes=memory_limit_bytes)
    for start, length in cuts:
        start = min(start, buffer.size_bytes)
        buffer.append(start, data[start : start + length])
        assert buffer.read() == data[: buffer.size_bytes]
    buffer.append(buffer.size_bytes, data[buffer.size_bytes :])
    buffer.verify(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    with pytest.raises(IntegrityError):
        buffer.verify(sha256=hashlib.sha256(data + b"x").hexdigest(), size_bytes=len(data))
    buffer.close()


def test_a_video_without_end_is_cut_off():
    buffer = VideoBuffer(size_limit_bytes=10)
    buffer.append(0, b"x" * 10)
    with pytest.raises(ServerError, match="larger than 10"):
        buffer.append(10, b"x")
    buffer.close()


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    usual_mode = target.stat().st_mode
    buffer = VideoBuffer()
    buffer.append(0, b"new")
    buffer.save(target)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode == usual_mode
    with pytest.raises(FileNotFoundError):
        buffer.save(tmp_path / "absent" / "out.mp4")
    assert [each.name for each in tmp_path.iterdir()] == ["out.mp4"]
    buffer.close()
