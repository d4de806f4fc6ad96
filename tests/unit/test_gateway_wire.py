"""The short way between two wire formats, held against the generated code."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import node_service_pb2, video_pb2, video_service_pb2

from gateway.output.wire import (
    NodeChunk,
    decode_run_response,
    encode_chunk,
    encode_event,
    seq_of_encoded,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@given(attempt=U32, n=U64, inner=U32, offset=U64, data=st.binary(max_size=400))
def test_a_chunk_is_read_as_the_generated_code_reads_it(attempt, n, inner, offset, data):
    chunk = video_pb2.ChunkEvent(attempt=inner, offset=offset, data=data)
    event = node_service_pb2.NodeEvent(attempt=attempt, n=n, chunk=chunk)
    raw = node_service_pb2.RunResponse(event=event).SerializeToString()
    read = decode_run_response(raw)
    if isinstance(read, NodeChunk):
        assert (read.attempt, read.n, read.offset, bytes(read.data)) == (attempt, n, offset, data)
    else:
        assert not data
        assert read.event == event


@given(raw=st.binary(max_size=60))
def test_other_bytes_are_read_the_ordinary_way(raw):
    try:
        expected = node_service_pb2.RunResponse.FromString(raw)
    except Exception as error:
        try:
            decode_run_response(raw)
        except type(error):
            return
        raise
    read = decode_run_response(raw)
    if isinstance(read, NodeChunk):
        assert bytes(read.data) == expected.event.chunk.data
        assert (read.n, read.attempt) == (expected.event.n, expected.event.attempt)
    else:
        assert read == expected


def test_events_that_are_no_chunk_stay_messages():
    progress = video_pb2.ProgressEvent(step=1, total_steps=2)
    event = node_service_pb2.NodeEvent(attempt=1, n=3, progress=progress)
    response = node_service_pb2.RunResponse(event=event)
    assert decode_run_response(response.SerializeToString()) == response
    busy = node_service_pb2.RunResponse(busy=node_service_pb2.Busy())
    assert decode_run_response(busy.SerializeToString()) == busy


def test_a_chunk_with_fields_after_its_bytes_is_read_the_ordinary_way():
    chunk = video_pb2.ChunkEvent(data=b"abc").SerializeToString() + b"\x10\x05"
    node_event = b"\x08\x01\x10\x02\x3a" + bytes((len(chunk),)) + chunk
    raw = b"\x12" + bytes((len(node_event),)) + node_event
    read = decode_run_response(raw)
    assert isinstance(read, node_service_pb2.RunResponse)
    assert (read.event.chunk.offset, read.event.chunk.data) == (5, b"abc")


@given(seq=U64, attempt=U32, offset=U64, data=st.binary(max_size=70_000), view=st.booleans())
def test_a_chunk_is_written_as_the_generated_code_writes_it(seq, attempt, offset, data, view):
    chunk = video_pb2.ChunkEvent(attempt=attempt, offset=offset, data=data)
    event = video_pb2.VideoEvent(seq=seq, video_id="ap-1", chunk=chunk)
    raw = encode_chunk(seq, "ap-1", attempt, offset, memoryview(data) if view else data)
    assert video_service_pb2.WatchVideoResponse.FromString(raw).event == event
    if data:
        assert raw == encode_event(event)
    assert video_service_pb2.GenerateVideoResponse.FromString(raw).event == event


@given(seq=U64, id_=st.text(max_size=200), data=st.binary(max_size=300))
def test_a_seq_is_read_as_the_generated_code_writes_it(seq, id_, data):
    for event in (
        video_pb2.VideoEvent(seq=seq, video_id=id_, chunk=video_pb2.ChunkEvent(data=data)),
        video_pb2.VideoEvent(seq=seq, video_id=id_, queued=video_pb2.QueuedEvent(position=seq % 7)),
        video_pb2.VideoEvent(seq=seq),
    ):
        message = video_service_pb2.WatchVideoResponse(event=event).SerializeToString()
        assert seq_of_encoded(message) == seq
    assert seq_of_encoded(encode_chunk(seq, id_, 1, 0, data)) == seq


def test_what_has_no_seq_reads_as_none():
    assert seq_of_encoded(b"") == 0
    assert seq_of_encoded(encode_event(video_pb2.VideoEvent(video_id="v"))) == 0
    assert seq_of_encoded(encode_event(video_pb2.VideoEvent())) == 0


@given(raw=st.binary(max_size=40))
def test_no_bytes_make_a_seq_raise(raw):
    assert seq_of_encoded(raw) >= 0
