import sys

import pytest

from wan_t2v_sdk import AsyncTextToVideoGenerator, TextToVideoGenerator, VideoEvent
from wan_t2v_sdk.bar import NoBar, StepBar, make_bar


def test_the_bar_follows_the_video(capsys):
    with make_bar(True) as bar:
        for event in (
            VideoEvent(kind="queued", position=2),
            VideoEvent(kind="started", region="ap"),
            VideoEvent(kind="progress", stage="denoise", step=1, total_steps=4),
            VideoEvent(kind="restarted"),
            VideoEvent(kind="progress", stage="encode_text", step=0, total_steps=4),
            VideoEvent(kind="completed"),
        ):
            bar.update(event)
    said = capsys.readouterr().err
    for text in ("queued, 2 ahead", "ap", "denoise", "1/4 steps", "restarted", "encode text"):
        assert text in said
    assert "done: 100%" in said.rpartition("\r")[2]


def test_nobody_watching_means_no_bar(capsys):
    assert isinstance(make_bar(None), NoBar)
    assert isinstance(make_bar(False), NoBar)
    with make_bar(None) as bar:
        bar.update(VideoEvent(kind="completed"))
    assert capsys.readouterr().err == ""


def test_a_terminal_means_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with make_bar(None) as bar:
        assert isinstance(bar, StepBar)


async def test_a_callback_in_the_place_of_the_bar_is_refused_before_anything_is_sent():
    arguments = {"endpoints": ["127.0.0.1:1"], "token": "t"}
    with pytest.raises(TypeError, match="on_progress="):
        TextToVideoGenerator(**arguments).generate("a ball", progress=print)
    async with AsyncTextToVideoGenerator(**arguments) as model:
        with pytest.raises(TypeError, match="on_progress="):
            await model.generate("a ball", progress=print)
