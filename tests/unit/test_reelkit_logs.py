"""What a log line must not hold."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import structlog
from reelkit.logs import setup_logging

setup_logging(level="info", fmt=sys.argv[1], process="test")

def handle(prompt, token):
    raise ValueError("the node is gone")

try:
    handle("a panda in the rain", "eyJhbGciOi")
except ValueError:
    structlog.get_logger("test").exception("it failed", job_id="ap-1")
"""


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_a_traceback_never_shows_what_the_variables_held(fmt):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, fmt], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "the node is gone" in done.stderr
    # Console tracebacks quote source lines; a value would stand as an assignment of a local.
    locals_shown = [line for line in done.stderr.splitlines() if "prompt =" in line]
    assert locals_shown == []
    if fmt == "json":
        assert "a panda in the rain" not in done.stderr
        line = json.loads(done.stderr)
        assert line["job_id"] == "ap-1"
        assert [frame["name"] for frame in line["exception"][0]["frames"]] == ["<module>", "handle"]
