"""Every error that a client can meet has a row, over HTTP and over gRPC."""

import json
import pkgutil
from importlib import import_module

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from gateway import errors
from gateway.auth import errors as auth_errors
from gateway.auth.access import Scope
from gateway.edge.error_table import ERROR_TABLE, UNLISTED, row_for
from gateway.edge_grpc.status import internal_status, rich_status
from gateway.edge_http.problem import problem_body, problem_of, problem_of_status, problem_response

# Modules that add classes to the tree.
for _package in ("auth", "edge_grpc", "edge_http", "peers"):
    for _module in pkgutil.iter_modules(import_module(f"gateway.{_package}").__path__):
        import_module(f"gateway.{_package}.{_module.name}")


def every_class(base=errors.GatewayError):
    for cls in base.__subclasses__():
        yield cls
        yield from every_class(cls)


def make(cls):
    if issubclass(cls, errors.InvalidRequest):
        violation = errors.FieldViolation("steps", "must be 1 to 100", ("100", "99"))
        error = cls.__new__(cls)
        errors.InvalidRequest.__init__(error, (violation,))
        return error
    if cls is errors.JobFailed:
        return cls("the worker died", job_code="worker_died", job_retryable=True)
    if issubclass(cls, errors.OtherRegion):
        return cls("eu")
    return cls("something", retry_after_s=2.2)


def details_of(status):
    metadata = dict(status.trailing_metadata)
    return status_pb2.Status.FromString(metadata["grpc-status-details-bin"])


def unpacked(proto, cls):
    for detail in proto.details:
        message = cls()
        if detail.Unpack(message):
            return message
    return None


@pytest.mark.parametrize("cls", sorted(every_class(), key=lambda c: c.__name__))
def test_every_class_is_mapped_and_said_on_both_edges(cls):
    error = make(cls)
    row = row_for(error)
    assert row is not UNLISTED
    problem = problem_of(error)
    body = problem_body(problem, instance="/v1/videos")
    assert problem.status == row.http_status
    assert body["code"] == body["error"]["code"] == cls.code
    assert body["type"].endswith(cls.code)
    status = rich_status(error)
    assert status.code is row.grpc_status
    info = unpacked(details_of(status), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (cls.code, "reelmesh")


def test_codes_differ():
    codes = [cls.code for cls in every_class()]
    assert len(codes) == len(set(codes))
    assert "internal" not in codes


def test_the_base_itself_has_no_row_so_that_a_new_branch_needs_one():
    assert errors.GatewayError not in ERROR_TABLE
    assert row_for(errors.GatewayError("?")) is UNLISTED


def test_create_can_never_answer_409():
    conflicts = {cls for cls, row in ERROR_TABLE.items() if row.http_status == 409}
    of_content = {errors.NotFinished, errors.VideoFailed, errors.VideoCancelled}
    of_content.add(errors.BatchNotFinished)
    assert conflicts == {*of_content, errors.JobFailed}


def test_a_refused_field_is_named_with_its_nearest_values_on_both_edges():
    error = make(errors.InvalidRequest)
    body = problem_body(problem_of(error), instance="/")
    assert body["errors"] == [
        {"field": "steps", "message": "must be 1 to 100", "nearest": ["100", "99"]}
    ]
    assert body["error"]["param"] == "steps"
    bad_request = unpacked(details_of(rich_status(error)), error_details_pb2.BadRequest)
    violation = bad_request.field_violations[0]
    assert violation.field == "steps"
    assert violation.description == "must be 1 to 100 (nearest valid: 100, 99)"


def test_the_message_itself_says_field_rule_and_nearest_on_both_edges():
    error = make(errors.InvalidRequest)
    said = "steps: must be 1 to 100; the nearest are 100, 99"
    body = problem_body(problem_of(error), instance="/")
    assert body["detail"] == body["error"]["message"] == said
    status = rich_status(error)
    assert status.details == details_of(status).message == said


def test_a_message_names_every_field_and_stays_short():
    names = ["width", "num_frames", "num_inference_steps", "fps", "seed", "guidance_scale"]
    long = "must be what is explained here at some length, and was not " * 2
    violations = [errors.FieldViolation(n, long, ("1", "2")) for n in names]
    for count in range(1, len(names) + 1):
        message = str(errors.InvalidRequest(tuple(violations[:count])))
        assert len(message.encode()) <= errors.MAX_MESSAGE_BYTES
        assert all(name in message for name in names[:count])
        assert message.startswith(f"width: {long.strip()} ; the nearest are 1, 2")


@pytest.mark.parametrize("text", ["m" * 70_000, "熊" * 70_000])
@pytest.mark.parametrize("count", [1, 5, 10_000])
def test_a_message_is_short_whatever_the_client_wrote(text, count):
    violations = tuple(errors.FieldViolation(text, text, (text,)) for _ in range(count))
    message = str(errors.InvalidRequest(violations))
    assert len(message.encode()) <= errors.MAX_MESSAGE_BYTES
    assert (f"{count - 1} more" in message) == (count > 1)


def test_another_regions_video_is_no_404_and_names_the_region():
    body = problem_body(problem_of(errors.OtherRegion("eu")), instance="/")
    assert (body["status"], body["code"], body["region"]) == (421, "other_region", "eu")
    assert "region eu" in body["error"]["message"]


def test_retry_is_said_where_it_helps_and_refused_where_not():
    busy = errors.ResourceExhausted("full", retry_after_s=2.2)
    response = problem_response(problem_of(busy), instance="/")
    assert response.headers["Retry-After"] == "3"
    assert "x-should-retry" not in response.headers
    retry = unpacked(details_of(rich_status(busy)), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToTimedelta().total_seconds() == pytest.approx(2.2)
    conflict = problem_response(problem_of(errors.NotFinished("it runs")), instance="/")
    assert conflict.headers["x-should-retry"] == "false"


def test_a_failed_job_says_its_own_code_and_whether_a_retry_helps():
    error = make(errors.JobFailed)
    body = problem_body(problem_of(error), instance="/")
    assert (body["job_code"], body["retryable"]) == ("worker_died", True)
    info = unpacked(details_of(rich_status(error)), error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"job_code": "worker_died", "retryable": "true"}


def test_challenges_follow_rfc_6750():
    missing = problem_response(problem_of(auth_errors.MissingToken("no token")), instance="/")
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="reelmesh"'
    expired = problem_response(problem_of(auth_errors.TokenExpired("it expired")), instance="/")
    assert 'error="invalid_token"' in expired.headers["WWW-Authenticate"]
    denied = problem_of(errors.PermissionDenied("no"), scope=Scope.VIDEO_READ)
    challenge = problem_response(denied, instance="/").headers["WWW-Authenticate"]
    assert 'error="insufficient_scope", scope="video:read"' in challenge


@pytest.mark.parametrize("letter", ["m", "熊"])
def test_a_status_fits_into_trailing_metadata_whatever_the_client_wrote(letter):
    long = letter * 70_000
    violations = tuple(errors.FieldViolation(long, long, (long,)) for _ in range(100))
    status = rich_status(errors.InvalidRequest(violations))
    (_key, value), *_rest = status.trailing_metadata
    # Base64 makes one a third larger and percent-encoding the other three times; clients
    # take 8 KiB in all.
    assert len(value) * 4 / 3 + len(status.details.encode()) * 3 < 8_000
    assert unpacked(details_of(status), error_details_pb2.BadRequest).field_violations


def test_every_field_of_a_request_can_be_refused_in_one_status():
    names = ["prompt", "model", "width", "height", "num_frames", "seconds", "fps", "steps"]
    violations = tuple(
        errors.FieldViolation(n, "must be 1 to 100, not 1000000000", ("100",)) for n in names
    )
    status = rich_status(errors.InvalidRequest(violations))
    bad_request = unpacked(details_of(status), error_details_pb2.BadRequest)
    assert [v.field for v in bad_request.field_violations] == names


def test_what_nobody_foresaw_is_told_bare():
    response = problem_response(problem_of_status(500), instance="/v1/videos")
    body = json.loads(response.body)
    assert (body["status"], body["code"], body["error"]["type"]) == (
        500,
        "internal",
        "server_error",
    )
    assert internal_status().code is grpc.StatusCode.INTERNAL
