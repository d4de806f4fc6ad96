import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

import wan_t2v_sdk
from wan_t2v_sdk import errors
from wan_t2v_sdk.arguments import check_key, request_of
from wan_t2v_sdk.rpc_status import error_of


def failure(code, text="it failed", details=()):
    packed = []
    for each in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(each)
        packed.append(wrapped)
    trailing = aio.Metadata()
    if details:
        status = status_pb2.Status(code=code.value[0], message=text, details=packed)
        trailing.add("grpc-status-details-bin", status.SerializeToString())
    return aio.AioRpcError(code, aio.Metadata(), trailing, details=text)


def info(reason, **metadata):
    return error_details_pb2.ErrorInfo(reason=reason, domain="reelmesh", metadata=metadata)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", errors.AuthenticationError),
        (grpc.StatusCode.PERMISSION_DENIED, "permission_denied", errors.PermissionDeniedError),
        (grpc.StatusCode.NOT_FOUND, "video_not_found", errors.VideoNotFoundError),
        (grpc.StatusCode.NOT_FOUND, "other_region", errors.OtherRegionError),
        (grpc.StatusCode.ALREADY_EXISTS, "idempotency_conflict", errors.ConflictError),
        (grpc.StatusCode.FAILED_PRECONDITION, "not_finished", errors.NotFinishedError),
        (grpc.StatusCode.FAILED_PRECONDITION, "job_failed", errors.GenerationFailedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted", errors.OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, "unavailable", errors.UnavailableError),
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", errors.InvalidRequestError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded", errors.DeadlineError),
        (grpc.StatusCode.INTERNAL, "internal", errors.ServerError),
        (grpc.StatusCode.DATA_LOSS, "odd", errors.ServerError),
    ],
)
def test_each_status_has_its_type_and_keeps_the_servers_code(code, reason, kind):
    error = error_of(failure(code, details=[info(reason)]), endpoint="ap=h:1")
    assert type(error) is kind
    assert (error.code, error.message) == (reason, "it failed")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.CANCELLED, "Cancelling all calls"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_what_grpc_says_itself_is_a_lost_connection(code, text):
    error = error_of(failure(code, text), endpoint="ap=h:1")
    assert type(error) is errors.ConnectionLostError
    assert "ap=h:1" in error.message


def test_the_retry_delay_is_kept():
    retry = error_details_pb2.RetryInfo(
        retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000)
    )
    error = error_of(
        failure(grpc.StatusCode.RESOURCE_EXHAUSTED, details=[info("full"), retry]), endpoint="h:1"
    )
    assert error.retry_after_s == 2.5


@pytest.mark.parametrize(
    ("description", "metadata", "nearest"),
    [
        ("16 is not allowed (nearest valid: 17, 13)", {}, ("17", "13")),
        ("must be 1 to 50, not 0 (nearest valid: 1)", {}, ("1",)),
        ("is empty", {}, ()),
        ("is wrong", {"nearest.num_frames": "17,13"}, ("17", "13")),
    ],
)
def test_the_nearest_values_are_parsed(description, metadata, nearest):
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="num_frames", description=description)
        ]
    )
    error = error_of(
        failure(
            grpc.StatusCode.INVALID_ARGUMENT, details=[info("invalid_request", **metadata), bad]
        ),
        endpoint="h:1",
    )
    assert [each.field for each in error.violations] == ["num_frames"]
    assert error.violations[0].nearest == nearest


def test_details_that_are_no_status_are_passed_over():
    trailing = aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    error = aio.AioRpcError(grpc.StatusCode.NOT_FOUND, aio.Metadata(), trailing, details="gone")
    assert error_of(error, endpoint="h:1").message == "gone"


def all_errors(kind=errors.ReelmeshError):
    for each in kind.__subclasses__():
        yield each
        yield from all_errors(each)


def test_every_error_is_exported_drawn_and_has_a_code_of_its_own():
    kinds = list(all_errors())
    for kind in kinds:
        assert getattr(wan_t2v_sdk, kind.__name__) is kind
        assert kind.__name__ in errors.__doc__
    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": 2**40}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"width": "640"}, "width"),
        ({"length_sec": "six"}, "seconds"),
        ({"seed": 2**70}, "seed"),
        ({"negative_prompt": "\ud800"}, "negative_prompt"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(settings, field):
    request = request_of("x", settings, default_model=None)
    with pytest.raises(errors.InvalidRequestError) as caught:
        request.to_spec()
    assert [each.field for each in caught.value.violations] == [field]


def test_nothing_is_rounded_and_nothing_is_invented():
    spec = request_of(
        "x", {"num_frames": 16, "guidance_scale": 0.0, "length_sec": 6}, default_model="m@2"
    ).to_spec()
    assert (spec.num_frames, spec.seconds, spec.model) == (16, 6.0, "m@2")
    assert spec.HasField("guidance_scale")
    assert not spec.HasField("seed")
    assert not spec.HasField("steps")


def test_an_unknown_setting_is_a_type_error_with_the_likely_name():
    with pytest.raises(TypeError, match="did you mean 'steps'"):
        request_of("x", {"stepz": 1}, default_model=None)


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 121, "a\n"])
def test_a_key_that_gateways_would_refuse_is_refused_here(key):
    with pytest.raises(errors.InvalidRequestError, match="idempotency_key"):
        check_key(key)


def test_keys_are_drawn_where_none_is_given():
    assert check_key("mine") == "mine"
    assert check_key(None) != check_key(None)
