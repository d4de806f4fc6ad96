"""Fixtures that several kinds of tests share."""

import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.models import make_model
from tests.support.s3 import s3_access, s3_server  # noqa: F401 - fixtures, used by their names

# A shell that runs the tests in its background has them ignore Ctrl-C, and what they start
# inherits that; the tests of an interruption need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Shared machines are slow at times: an example that takes long is no failure.
hypothesis.settings.register_profile("reelmesh", deadline=None)
hypothesis.settings.load_profile("reelmesh")


@pytest.fixture(scope="session")
def random_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random-weight model and its manifest; do not write into it."""
    return make_model(tmp_path_factory.mktemp("model") / "wan-demo")
