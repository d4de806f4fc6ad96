import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from node_agent.model_folder import ModelFolderError, open_model_folder, write_manifest


@pytest.fixture
def folder(random_model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(random_model_dir, tmp_path / "model"))


def verify(path: Path) -> None:
    open_model_folder(path).verify_files()


def test_an_untouched_folder_is_accepted(folder):
    verify(folder)


def test_a_tampered_file_of_the_same_size_is_named(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    with pytest.raises(ModelFolderError, match=r"vae/diffusion.*sha256"):
        verify(folder)


def test_every_problem_is_named_at_once(folder):
    (folder / "model_index.json").unlink()
    with (folder / "vae" / "config.json").open("a") as file:
        file.write(" ")
    (folder / "extra.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"\x80\x04")

    with pytest.raises(ModelFolderError) as caught:
        verify(folder)

    text = str(caught.value)
    assert "model_index.json: is missing" in text
    assert "vae/config.json: has" in text
    assert "extra.json: is not in the manifest" in text
    assert "weights.bin: is of a kind that is not accepted" in text


def test_a_link_is_refused_even_to_the_right_bytes(folder, tmp_path):
    file = folder / "vae" / "config.json"
    outside = tmp_path / "outside.json"
    shutil.move(file, outside)
    file.symlink_to(outside)

    with pytest.raises(ModelFolderError, match=r"vae/config.json: is a symbolic link"):
        verify(folder)


def test_a_linked_folder_is_refused(folder, tmp_path):
    shutil.move(folder / "vae", tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae", target_is_directory=True)

    with pytest.raises(ModelFolderError, match="vae: is a symbolic link"):
        verify(folder)


def test_a_pipe_among_the_files_is_refused_and_not_read(folder):
    os.mkfifo(folder / "pipe.json")

    with pytest.raises(ModelFolderError, match=r"pipe\.json: is no regular file"):
        verify(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\ufeff{}"])
def test_a_broken_manifest_is_refused_with_its_path(folder, text):
    (folder / "manifest.json").write_text(text)

    with pytest.raises(ModelFolderError, match=r"manifest\.json"):
        verify(folder)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="cannot be read"):
        open_model_folder(tmp_path)


def test_a_manifest_is_not_written_over_a_pickle(folder):
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["files"]
    (folder / "weights.pt").write_bytes(b"\x80")

    with pytest.raises(ModelFolderError, match=r"weights\.pt"):
        write_manifest(folder, fields)


def test_writing_again_gives_the_same_identity(folder):
    before = open_model_folder(folder)
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["files"]

    assert write_manifest(folder, fields).manifest_sha256 == before.manifest_sha256


def test_the_maker_is_deterministic_and_refuses_a_full_folder(random_model_dir, tmp_path):
    from node_agent.engine.random_model import make_random_model

    made = make_random_model(tmp_path / "again")

    assert made.manifest_sha256 == open_model_folder(random_model_dir).manifest_sha256
    assert sum(entry.size_bytes for entry in made.manifest.files) < 4_000_000
    with pytest.raises(FileExistsError):
        make_random_model(tmp_path / "again")


def test_what_the_agent_imports_never_imports_torch():
    code = (
        "import sys, node_agent.engine.spawn, node_agent.manifest, node_agent.model_folder, "
        "node_agent.worker_wire; "
        "heavy = {'torch', 'diffusers', 'transformers', 'av', 'numpy'} & sys.modules.keys(); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
