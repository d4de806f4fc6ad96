"""Configuration: one YAML file, then the environment, then flags; all errors at once.

Models derive from :class:`Settings` (frozen, unknown fields refused). Secrets are
pydantic ``SecretStr`` or paths to files, so that printing a configuration is safe.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

S = TypeVar("S", bound="Settings")

CONFIG_ERROR_CODE = 2
"""Exit code of a part whose configuration cannot be used."""

_HOST = re.compile(r"\[[0-9A-Fa-f:]+\]|[^:\s/]+")


class Settings(BaseModel):
    """Base of every configuration section: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    # Longer numbers would be taken modulo 65,536 and another port be listened on.
    if not _HOST.fullmatch(host) or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{text!r} must be host:port with a port up to 65535")
    return text


Address = Annotated[str, AfterValidator(_check_address)]
"""``host:port``, or ``[address]:port`` for IPv6."""


class ConfigError(Exception):
    """The configuration cannot be used; the message lists every problem, a line each.

    Raised while it is read, and also by a part that finds at its start that a file cannot
    be read or an address not be bound: no traceback helps whoever wrote the configuration.
    """


@contextlib.contextmanager
def blame_field(field: str, value: object, kind: type[Exception] = OSError) -> Iterator[None]:
    """A step of a part's start that fails only where a field names what cannot be used.

    Args:
        field: Path of the field, such as ``grpc.listen``.
        value: What it says.
        kind: Errors of the step that mean that.

    Raises:
        ConfigError: In their place, with the field, its value and the reason in one line.
    """
    try:
        yield
    except kind as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        first, *_ = reason.removeprefix(f"{field} ").splitlines() or [type(error).__name__]
        where = field if str(value) in first else f"{field} {value}"
        raise ConfigError(f"{where}: {first}") from error


def load_settings(
    model: type[S],
    *,
    file: Path | None,
    env_prefix: str,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> S:
    """Builds ``model`` from file, environment and flags; later sources win.

    Args:
        model: The configuration's root.
        file: A YAML mapping; relative paths inside are left as they are.
        env_prefix: ``REELMESH_GATEWAY__`` makes ``REELMESH_GATEWAY__AUTH__LEEWAY_S=5``
            set ``auth.leeway_s``.
        overrides: ``key.sub=value`` strings of ``--set`` flags.
        environ: For tests; the process's own by default.

    Raises:
        ConfigError: Names every field that is wrong and why.
    """
    data: dict[str, Any] = _read_yaml(file) if file is not None else {}
    env = os.environ if environ is None else environ
    for key, text in sorted(env.items()):
        if key.startswith(env_prefix):
            path = key[len(env_prefix) :].lower().split("__")
            _put(data, path, text, source=f"environment variable {key}")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {override}: write it as key.sub=value")
        _put(data, name.split("."), text, source=f"--set {override}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_describe(error)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file}: must be a mapping of fields at its top")
    return loaded


def _put(data: dict[str, Any], path: list[str], text: str, *, source: str) -> None:
    node = data
    for part in path[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {part!r} is a single value, it has no parts")
        node = child
    try:
        # YAML reads numbers, booleans, lists and mappings as a person writes them.
        node[path[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[path[-1]] = text


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"]) or "(top)"
        lines.append(f"{where}: {problem['msg']}")
    return "\n".join(lines)


def dump_settings(settings: Settings) -> str:
    """The effective configuration as YAML, secrets masked; what --check-config prints."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text
