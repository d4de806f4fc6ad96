from __future__ import annotations

import pytest
from pydantic import Field, SecretStr

from reelkit.settings import ConfigError, Settings, dump_settings, load_settings


class Auth(Settings):
    leeway_s: float = Field(default=10, ge=0)
    secret: SecretStr = SecretStr("hidden")


class Root(Settings):
    name: str
    port: int = 0
    auth: Auth = Auth()


def load(tmp_path, text="", *, env=None, overrides=()):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_settings(
        Root, file=file, env_prefix="REELMESH_TEST__", overrides=overrides, environ=env or {}
    )


def test_flags_win_over_environment_over_file(tmp_path):
    text = "name: file\nport: 1\nauth: {leeway_s: 1}\n"
    env = {"REELMESH_TEST__PORT": "2", "REELMESH_TEST__AUTH__LEEWAY_S": "2", "OTHER": "x"}
    got = load(tmp_path, text, env=env, overrides=["auth.leeway_s=3"])
    assert (got.name, got.port, got.auth.leeway_s) == ("file", 2, 3)


def test_every_problem_is_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "port: many\nauth: {leeway_s: -1}\nextra: 1\n")
    message = str(caught.value)
    for field in ("name", "port", "auth.leeway_s", "extra"):
        assert any(line.startswith(f"{field}:") for line in message.splitlines()), message


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_settings(Root, file=missing, env_prefix="X__", environ={})


def test_a_flag_without_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"key\.sub=value"):
        load(tmp_path, "name: a", overrides=["port"])


def test_a_part_below_a_single_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="single value"):
        load(tmp_path, "name: a", overrides=["name.first=b"])


def test_printing_a_configuration_masks_secrets(tmp_path):
    got = load(tmp_path, "name: a", overrides=["auth.secret=open-sesame"])
    assert got.auth.secret.get_secret_value() == "open-sesame"
    assert "open-sesame" not in dump_settings(got)
