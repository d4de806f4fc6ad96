"""What a fetch tells: silence, progress, and errors without secrets."""

import threading

import pytest
from pydantic import ValidationError

from node_agent.config import ModelSettings
from node_agent.fetch_watch import Meter, StallWatch, first_line, public_url


def test_silence_raises_the_alarm_once_and_names_whom_and_the_setting():
    said: list[str] = []
    alarm = threading.Event()

    def on_stall(sentence: str) -> None:
        said.append(sentence)
        alarm.set()

    watch = StallWatch(0.05, on_stall)
    with watch.waiting("s3://bucket/model"):
        assert alarm.wait(10)
    assert len(said) == 1
    assert said[0].startswith("s3://bucket/model: sent nothing for 0.05 s (model.fetch_stall_s)")


def test_bytes_and_blocks_that_end_keep_the_alarm_still():
    looks = threading.Semaphore(0)
    watch = StallWatch(0.05, pytest.fail)

    def poll() -> None:
        # As a folder that has grown since the last look.
        watch.beat()
        looks.release()

    with watch.waiting("hub", poll):
        for _ in range(25):
            assert looks.acquire(timeout=10)
    assert "stall-watch" not in {thread.name for thread in threading.enumerate()}


def test_the_meter_tells_each_hundredth_and_the_end():
    told: list[tuple[int, int]] = []
    meter = Meter(1000, lambda *line: told.append(line))
    for count in (4, 4, 4, 980, 8):
        meter.add(count)
    assert told == [(12, 1000), (992, 1000), (1000, 1000)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@host/models", "https://host/models"),
        ("https://host/models?sig=abc&x=1", "https://host/models"),
        ("s3://bucket/models/demo", "s3://bucket/models/demo"),
        ("hf://org/name@main", "hf://org/name@main"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert public_url(url) == shown


def test_an_error_is_one_line_without_its_urls_secrets():
    error = OSError("GET https://u:p@host/a?X-Sig=s3cret failed: down.\n\nDebug: u:p")
    assert first_line(error) == "GET https://host/a failed: down"
    assert first_line(OSError()) == "OSError"


@pytest.mark.parametrize(
    "name",
    ["secret_access_key", "aws_session_token", "AZURE_STORAGE_ACCOUNT_KEY", "service_account_key"],
)
def test_a_secret_among_the_store_options_is_refused(name):
    with pytest.raises(ValidationError, match="environment") as caught:
        ModelSettings(source="s3://b/p", store_options={name: "hidden-value"})
    assert "hidden-value" not in str(caught.value.errors(include_input=False)[0]["msg"])


def test_options_that_are_no_secrets_are_taken():
    options = {"endpoint": "http://s3", "access_key_id": "AKID", "bucket_key_enabled": "true"}
    assert ModelSettings(source="s3://b/p", store_options=options).store_options == options
