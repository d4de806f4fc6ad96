"""What a command cannot do is said before it begins: option, reason, what to do instead."""

import importlib.metadata
import json
import os
import socket
from pathlib import Path

import pytest

from reelmesh_cli.__main__ import main
from reelmesh_cli.mesh.model import named_manifest
from tests.support.models import DEMO_MODEL


@pytest.fixture(autouse=True)
def mesh_nobody_asks(monkeypatch, tmp_path):
    """The environment names a mesh; whoever asks it waits for the test's end."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(0)
        monkeypatch.setenv("REELMESH_ENDPOINTS", f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("REELMESH_TOKEN", "t")
        monkeypatch.chdir(tmp_path)
        yield
        with pytest.raises(BlockingIOError):
            silent.accept()


@pytest.fixture
def refused(capsys):
    """What a command that must be refused says."""

    def refused(*arguments: object) -> str:
        assert main([str(each) for each in arguments]) == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize("option", ["--output", "--contact-sheet"])
def test_a_result_that_cannot_be_written_is_refused_before_it_is_made(refused, option, tmp_path):
    (tmp_path / "file").write_text("")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target, reason in {
        tmp_path: "is a folder",
        fifo: "is no regular file",
        tmp_path / "no" / "x": "does not exist",
        tmp_path / "file" / "x": "does not exist",
        "/proc/x": "cannot be written",
    }.items():
        said = refused("generate", "x", option, target)
        assert f"{option} {target}: " in said
        assert reason in said


def test_two_results_in_one_file_are_refused(refused):
    assert "name the same file" in refused("generate", "x", "-o", "a", "--contact-sheet", "./a")


@pytest.mark.parametrize("command", [("batch", "prompts.txt", "--out"), ("demo", "--out")])
def test_a_folder_that_cannot_be_is_refused(refused, command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a")
    said = refused(*command, tmp_path / "prompts.txt")
    assert f"--out {tmp_path / 'prompts.txt'}: there is a file" in said
    assert "--out /proc/x: cannot be written" in refused(*command, "/proc/x")


def test_a_batch_whose_results_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "prompts.txt").write_text("a")
    (tmp_path / "out" / "results.csv").mkdir(parents=True)
    said = refused("batch", "prompts.txt", "--out", "out")
    assert "--out out/results.csv: cannot be written: Is a directory" in said


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_state_folder_that_cannot_be_is_refused(refused, command, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(command, "--state-dir", tmp_path / "file")
    assert f"--state-dir {tmp_path / 'file'}: there is a file" in said
    assert "--state-dir /proc/x: cannot be written" in refused(command, "--state-dir", "/proc/x")


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_manifest_is_checked_before_anything_starts(refused, command, tmp_path):
    file = tmp_path / "m.json"
    fields = json.loads((DEMO_MODEL / "manifest.json").read_text())
    for text, reason in {
        "{": "is not JSON",
        "[]": "must be a JSON object",
        json.dumps({**fields, "fps": 0}): "fps: ",
        # One that lists no files keeps the other rules none the less.
        json.dumps({**fields, "files": None, "steps": 3}): "steps: ",
    }.items():
        file.write_text(text)
        said = refused(command, "--model", "hf://org/name", "--manifest", file)
        assert f"--manifest {file}: {reason}" in said
        assert "Traceback" not in said
    said = refused(command, "--model", "hf://org/name", "--manifest", "none.json")
    assert "--manifest none.json: there is no such file" in said
    assert "shipped: wan2.2-ti2v-5b" in said
    assert "--manifest goes with --model" in refused(command, "--manifest", file)
    assert not (tmp_path / "mesh-state").exists()


def test_a_shipped_manifest_is_known_by_its_name():
    shipped = named_manifest(Path("wan2.2-ti2v-5b"))
    assert json.loads(shipped.read_text())["name"] == "wan2.2-ti2v-5b"


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"reelmesh {importlib.metadata.version('reelmesh')}\n"


def test_the_first_help_has_examples_of_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for command in ("demo", "up", "generate", "batch"):
        assert f"  reelmesh {command}" in said
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    assert "#" in capsys.readouterr().out, "comments in text files are not told"
