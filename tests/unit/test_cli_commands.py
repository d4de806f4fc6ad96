import datetime as dt
import io
import json

import av
import jwt
import numpy as np
import pytest

from reelmesh_cli import contact_sheet
from reelmesh_cli.__main__ import main
from reelmesh_cli.config import mesh_file_of
from reelmesh_cli.errors import StateDirInUseError, UsageError
from reelmesh_cli.mesh.keys import OPERATOR_SCOPES, USER_SCOPES, write_keys
from reelmesh_cli.mesh.model import named_model
from reelmesh_cli.mesh.ports import free_ports
from reelmesh_cli.mesh.state_dir import hold_state_dir

NOW = dt.datetime.now(tz=dt.UTC)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", ["up", "demo", "generate", "batch"])
def test_each_command_helps_with_examples(command, flag, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, flag])
    assert left.value.code == 0
    assert f"reelmesh {command} " in capsys.readouterr().out


def test_no_mesh_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REELMESH_ENDPOINTS", raising=False)
    assert main(["generate", "x"]) == 2
    said = capsys.readouterr().err
    assert "reelmesh up" in said
    assert "--mesh" in said


def test_a_missing_folder_is_said_before_any_work(tmp_path, capsys):
    assert main(["generate", "x", "-o", str(tmp_path / "no" / "x.mp4")]) == 2
    assert "mkdir -p" in capsys.readouterr().err


def test_errors_are_json_where_asked(tmp_path, capsys):
    assert main(["generate", "x", "--mesh", str(tmp_path / "absent.json"), "--json"]) == 2
    assert "absent.json" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_option_wins_then_the_environment_then_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "mesh.json"
    environ = {"REELMESH_ENDPOINTS": "h:1"}
    assert mesh_file_of(named, environ=environ) == named
    assert mesh_file_of(tmp_path, environ=environ) == named
    assert mesh_file_of(None, environ=environ) is None
    with pytest.raises(UsageError):
        mesh_file_of(None, environ={})
    (tmp_path / "mesh-state").mkdir()
    (tmp_path / "mesh-state" / "mesh.json").write_text("{}")
    assert mesh_file_of(None, environ={}).name == "mesh.json"


def test_the_tokens_hold_and_the_files_are_private(tmp_path):
    tokens = write_keys(tmp_path / "keys", now=NOW)
    keys = jwt.PyJWKSet.from_dict(json.loads((tmp_path / "keys" / "jwks.json").read_text()))
    for token, scopes in ((tokens.user, USER_SCOPES), (tokens.operator, OPERATOR_SCOPES)):
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(
            token, key, algorithms=["EdDSA"], audience="reelmesh", issuer="reelmesh-local"
        )
        assert tuple(claims["scope"].split()) == scopes
        assert {"sub", "tenant", "exp", "iat", "jti"} <= set(claims)
    assert "d" not in json.loads((tmp_path / "keys" / "jwks.json").read_text())["keys"][0]
    for file in (tmp_path / "keys").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_token_from_before_a_restart_still_holds(tmp_path):
    write_keys(tmp_path, now=NOW)
    before = (tmp_path / "jwks.json").read_bytes()
    write_keys(tmp_path, now=NOW)
    assert (tmp_path / "jwks.json").read_bytes() == before


def test_one_mesh_holds_a_folder(tmp_path):
    with hold_state_dir(tmp_path / "state") as folder:
        (folder / "mesh.json").write_text("{}")
        with pytest.raises(StateDirInUseError, match="in use"), hold_state_dir(folder):
            pass
        assert (folder / "mesh.json").exists()
    # What a killed mesh left is no mesh.
    with hold_state_dir(folder):
        assert not (folder / "mesh.json").exists()
    assert folder.stat().st_mode & 0o077 == 0


def test_ports_differ_and_are_free_afterwards():
    import socket

    with free_ports() as ports:
        drawn = [next(ports) for _ in range(20)]
    assert len(set(drawn)) == 20
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", drawn[0]))


def test_a_model_folder_needs_a_manifest(tmp_path):
    with pytest.raises(UsageError, match=r"manifest\.json"):
        named_model(str(tmp_path))
    assert named_model(str(tmp_path), has_manifest=True) == str(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        named_model(str(tmp_path / "none"), has_manifest=True)
    (tmp_path / "manifest.json").write_text("{}")
    assert named_model(str(tmp_path)) == str(tmp_path)
    assert named_model("hf://org/name") == "hf://org/name"


@pytest.mark.parametrize(
    ("shape", "count", "height", "width"),
    [((9, 96, 128), 8, 96, 8 * 128 + 7 * 4), ((3, 32, 64), 8, 32, 3 * 64 + 2 * 4)],
)
def test_a_contact_sheet_shows_first_and_last(tmp_path, shape, count, height, width):
    frames = np.zeros((3, *shape), np.uint8)
    frames[0, 0] = 255
    frames[2, -1] = 255
    contact_sheet.write_sheet(frames, tmp_path / "s.png", count=count)
    with av.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (height, width, 3)
    assert tuple(picture[0, 0]) == (255, 0, 0)
    assert tuple(picture[-1, -1]) == (0, 0, 255)


def test_tall_frames_are_thinned():
    assert contact_sheet.sheet_of(np.zeros((3, 2, 704, 1280), np.uint8)).shape[0] <= 240
