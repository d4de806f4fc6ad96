from __future__ import annotations

import pytest
from pydantic import Field, SecretStr

from reelkit.settings import (
    Address,
    ConfigError,
    Settings,
    blame_field,
    dump_settings,
    load_settings,
)


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


class Listener(Settings):
    listen: Address


@pytest.mark.parametrize("text", ["127.0.0.1:0", "host:65535", "[::1]:80"])
def test_an_address_has_a_host_and_a_port(text):
    assert Listener(listen=text).listen == text


@pytest.mark.parametrize(
    "text", ["host", ":80", "host:", "host:x", "host:65536", "a b:80", "::1:80"]
)
def test_an_address_that_cannot_be_is_refused(text):
    # gRPC takes 65,536 for 0 and listens on any port.
    with pytest.raises(ValueError, match="host:port"):
        Listener(listen=text)


def test_what_fails_at_the_start_names_the_field_its_value_and_the_reason(tmp_path):
    missing = tmp_path / "none"
    with pytest.raises(ConfigError) as caught, blame_field("etcd.ca", missing):
        missing.read_bytes()
    assert str(caught.value) == f"etcd.ca {missing}: No such file or directory"
    # What names the value, or the field, already does not say it twice; one line is enough.
    with pytest.raises(ConfigError) as caught, blame_field("url", "z://b", RuntimeError):
        raise RuntimeError("url z://b: unknown\n\nDebug: {...}")
    assert str(caught.value) == "url: z://b: unknown"
    with pytest.raises(TypeError), blame_field("url", "z://b"):
        raise TypeError("a mistake in the code")
