"""What is drawn is what was asked for: the trained demo model through the public API."""

from pathlib import Path

import pytest

from tests.support.mesh import RunningMesh, running_mesh
from tests.support.models import DEMO_MODEL
from tools.demo_model.evaluator import Sight, look_at
from wan_t2v_sdk import TextToVideoGenerator


@pytest.fixture(scope="module")
def demo_mesh(tmp_path_factory):
    """One region that serves the model as it ships."""
    state_dir = tmp_path_factory.mktemp("drawn") / "state"
    with running_mesh(state_dir, "--regions", "home", "--model", str(DEMO_MODEL)) as running:
        yield running


def seen(sight: Sight) -> tuple[str, ...]:
    return (sight.size, sight.color, sight.shape, sight.motion, sight.background)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "a big red ball moving left on a white background",
            ("big", "red", "circle", "left", "white"),
        ),
        ("一个小的绿色三角形在灰色背景上向上移动", ("small", "green", "triangle", "up", "grey")),
    ],
    ids=["english", "chinese"],
)
def test_the_picture_follows_the_sentence(
    demo_mesh: RunningMesh, tmp_path: Path, look, prompt, expected
):
    with TextToVideoGenerator.from_mesh(demo_mesh.file, timeout_s=60) as model:
        result = model.generate(prompt, seed=2, progress=False)
    result.save(tmp_path / "drawn.mp4")
    assert seen(look_at(look((tmp_path / "drawn.mp4").read_bytes()).frames)) == expected
