"""``reelmesh batch`` and ``reelmesh generate`` against a whole mesh."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.mesh import RunningMesh, assert_gone
from tools.demo_model.evaluator import look_at


def reelmesh(*arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reelmesh_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def results_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_generate_saves_the_video_and_tells_its_facts(mesh: RunningMesh, tmp_path, look):
    video, sheet = tmp_path / "ball.mp4", tmp_path / "sheet.png"
    done = reelmesh(
        "generate",
        "a red ball",
        *("--mesh", str(mesh.file), "--resolution", "480p", "--seconds", "1", "--steps", "2"),
        *("-o", str(video), "--contact-sheet", str(sheet), "--json"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    clip = look(video.read_bytes())
    assert (clip.width, clip.height, len(clip.frames), clip.fps) == (128, 96, 9, 8)
    assert (facts["width"], facts["height"], facts["num_frames"]) == (128, 96, 9)
    assert facts["path"] == str(video)
    picture = look(sheet.read_bytes()).frames[0]
    # Eight frames in a row, four pixels between them.
    assert picture.shape == (96, 8 * 128 + 7 * 4, 3)
    assert abs(picture[:, :128].astype(int) - clip.frames[0]).max() < 8


def test_generate_says_what_to_do_about_a_mistake(mesh: RunningMesh):
    done = reelmesh("generate", "x", "--mesh", str(mesh.file), "--num-frames", "16")
    assert done.returncode == 2
    assert "num_frames: 16 is not allowed" in done.stderr
    assert done.stderr.count("17, 13") == 1
    assert "the nearest are 17, 13" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_goes_on_where_it_was_interrupted(mesh: RunningMesh, tmp_path, look):
    prompts = tmp_path / "prompts.csv"
    rows = ["prompt,num_frames,steps,seed", *(f"ball {n},{5 + 4 * n},40,{n}" for n in range(8))]
    prompts.write_text("\n".join([*rows, "bad,16,2,1"]), encoding="utf-8")
    out = tmp_path / "out"
    command = ("batch", str(prompts), "--out", str(out), "--mesh", str(mesh.file))
    refused = reelmesh(*command)
    assert refused.returncode == 2
    assert "line 10, num_frames: 16 is not allowed" in refused.stderr
    assert "nearest" in refused.stderr
    assert results_of(out) == [], "nothing is made by halves"

    prompts.write_text("\n".join(rows), encoding="utf-8")
    first = subprocess.Popen(
        [sys.executable, "-m", "reelmesh_cli", *command, "--concurrency", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 60
    while not (out / "results.csv").exists() or len(results_of(out)) < 2:
        assert first.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    batch_id = json.loads((out / "batch.json").read_text())["batch_id"]
    before = {row["digest"]: row for row in results_of(out)}
    assert 2 <= len(before) < 9

    second = reelmesh(*command, "--json")
    assert second.returncode == 0, second.stderr
    summary = json.loads(second.stdout)
    assert summary["batch_id"] == batch_id, "the same batch goes on"
    assert summary["skipped"] == len(before)
    assert summary["completed"] + summary["skipped"] == 8
    results = results_of(out)
    assert [int(row["line"]) for row in results] == list(range(2, 10))
    assert [row["status"] for row in results] == ["completed"] * 8
    for number, row in enumerate(results):
        assert row["video_id"] == before.get(row["digest"], row)["video_id"]
        assert len(look((out / row["file"]).read_bytes()).frames) == 5 + 4 * number
        assert row["seed"] == str(number)


def test_the_demo_makes_a_video_and_leaves_no_process(tmp_path, look):
    done = reelmesh(
        "demo",
        *("--regions", "home", "--threads", "1", "--json"),
        *("--state-dir", str(tmp_path / "state"), "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    clip = look(Path(facts["path"]).read_bytes())
    assert (clip.width, clip.height) == (facts["width"], facts["height"])
    assert len(clip.frames) == facts["num_frames"]
    sight = look_at(clip.frames)
    assert (sight.size, sight.color, sight.shape, sight.motion) == (
        *("big", "red", "circle", "bouncing"),
    )
    assert Path(facts["contact_sheet"]).exists()
    assert not (tmp_path / "state" / "mesh.json").exists()
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert_gone(left)
