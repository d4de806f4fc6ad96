"""What the README tells a new user to type works as it stands, in its order.

The mesh is the tests' own: a small model of random weights, whose named sizes and lengths
resolve to others than those of the model that is shipped.
"""

import csv
import os
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.support.documents import blocks_of
from tests.support.mesh import RunningMesh


@pytest.fixture(scope="module")
def folder(mesh: RunningMesh, tmp_path_factory) -> Path:
    """Where the README was followed after its ``reelmesh up``, with what came of it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "mesh-state").symlink_to(mesh.state_dir)
    programs = folder / "programs"
    programs.mkdir()
    for name, words in {
        "python": [sys.executable, "-W", "error"],
        "reelmesh": [sys.executable, "-m", "reelmesh_cli"],
    }.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={shlex.quote(str(programs))}:$PATH\n")
    script = "set -eu\n" + "\n".join(lines_of(folder))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REELMESH_")}
    done = subprocess.run(
        ["bash", "-c", script],  # noqa: S607 - found by PATH, as the reader's
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def lines_of(folder: Path) -> list[str]:
    """The blocks as one script; Python ones run from files."""
    lines = []
    for number, block in enumerate(blocks_of("README.md", under="A first request")):
        if "TextToVideoGenerator" in block.text:
            # test_e2e_generate.py runs it, and holds it to be that of the README.
            continue
        if block.language == "python":
            (folder / f"{number}.py").write_text(block.text, encoding="utf-8")
            # OpenAI ends its own service of this shape, and its client says so.
            allowed = "ignore:The Sora API:DeprecationWarning"
            lines.append(f"python -W {shlex.quote(allowed)} {number}.py")
        elif "reelmesh up" not in block.text:
            assert block.language == "sh"
            lines.append(block.text)
    assert len(lines) == 5, "the command line, the environment, HTTP, OpenAI's client and gRPC"
    return lines


@pytest.mark.parametrize("name", ["ball.mp4", "ball-http.mp4", "ball-openai.mp4", "ball-grpc.mp4"])
def test_each_way_of_the_readme_ends_in_a_video(folder: Path, look, name):
    assert len(look((folder / name).read_bytes()).frames) > 1


@pytest.mark.parametrize("name", ["ball-http.jpg", "ball-openai.jpg"])
def test_its_pictures_are_pictures(folder: Path, name):
    with Image.open(folder / name) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) > 1


def test_the_batch_of_the_readme_makes_its_rows(folder: Path, look):
    with (folder / "videos" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed", "completed"]
    for row in rows:
        look((folder / "videos" / row["file"]).read_bytes())


def test_curl_shows_the_events_and_the_record(folder: Path):
    said = (folder / "said").read_text()
    assert '"type": "completed"' in said or '"type":"completed"' in said
    assert '"status": "completed"' in said or '"status":"completed"' in said


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_what_is_open_asks_for_no_token(mesh: RunningMesh, path):
    url = mesh.http() + path
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the mesh's own URL
        assert answer.status == 200
