"""Whoever is refused for now is told when to come back, wherever in the gateway it happens."""

import ast
from pathlib import Path

import pytest

from gateway import errors
from gateway.auth import errors as auth_errors
from gateway.edge_grpc.status import rich_status
from gateway.edge_http.problem import problem_of, problem_response

GATEWAY = Path(errors.__file__).parent
# A stream that its reader held up may be taken up again at once.
AT_ONCE = {errors.ReaderTooSlow}


def retryable(kind=errors.GatewayError):
    for each in kind.__subclasses__():
        if each.retryable and each not in AT_ONCE:
            yield each
        yield from retryable(each)


NAMES = {kind.__name__ for kind in retryable()}


def raised():
    """(file, line, call) of each place that makes such an error."""
    for file in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in NAMES:
                    yield file.relative_to(GATEWAY), node.lineno, node


def test_every_such_error_is_made_with_a_delay():
    places = list(raised())
    assert len(places) > 10
    bare = [
        f"{file}:{line}"
        for file, line, call in places
        if not any(keyword.arg == "retry_after_s" for keyword in call.keywords)
    ]
    assert not bare, f"these tell no delay: {bare}"


@pytest.mark.parametrize(
    "kind", [errors.ResourceExhausted, errors.Unavailable, auth_errors.KeysAway]
)
@pytest.mark.parametrize(("delay_s", "seconds"), [(0.01, "1"), (1.2, "2"), (300.0, "300")])
def test_both_edges_tell_it(kind, delay_s, seconds):
    error = kind("why", retry_after_s=delay_s)
    assert problem_response(problem_of(error), instance="/").headers["Retry-After"] == seconds
    trailing = dict(rich_status(error).trailing_metadata)
    assert b"google.rpc.RetryInfo" in trailing["grpc-status-details-bin"]
