"""Whatever bytes arrive, decoding answers with a message or with the client's mistake."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.edge_grpc.decode import Undecodable, deserializer
from gateway.errors import InvalidRequest, PayloadTooLarge

decode = deserializer(video_service_pb2.CreateVideoRequest, max_bytes=1_000)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_a_mistake(data):
    found = decode(data)
    if isinstance(found, Undecodable):
        assert isinstance(found.error, InvalidRequest)
    else:
        assert isinstance(found, video_service_pb2.CreateVideoRequest)


@given(st.text(max_size=100))
def test_a_message_arrives_as_it_was_sent(prompt):
    sent = video_service_pb2.CreateVideoRequest(spec=video_pb2.VideoSpec(prompt=prompt))
    assert decode(sent.SerializeToString()) == sent


def test_the_string_that_is_not_utf8_is_named():
    good = video_service_pb2.CreateVideoRequest(
        spec=video_pb2.VideoSpec(prompt="good", negative_prompt="SPOIL")
    )
    found = decode(good.SerializeToString().replace(b"SPOIL", b"\xff\xfe\xfd\xfc\xfb"))
    assert [v.field for v in found.error.violations] == ["negative_prompt"]


def test_too_many_bytes_are_not_decoded():
    found = decode(b"\xff" * 1_001)
    assert isinstance(found.error, PayloadTooLarge)
    assert "1001" in found.error.message
