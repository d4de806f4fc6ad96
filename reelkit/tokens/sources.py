"""Where an issuer's keys come from: a file, a URL, or a shared secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from reelkit.clock import Clock
from reelkit.settings import ConfigError
from reelkit.tokens.config import IssuerSettings
from reelkit.tokens.keys import MIN_SECRET_BYTES, KeySource, SharedSecret
from reelkit.tokens.refreshed import Load, Loaded, RefreshedKeys, SourceAway

# How soon a changed file is noticed; looking costs one stat.
FILE_FRESH_S: Final = 5.0

LoaderOf = Callable[[str], Load]
"""Makes what reads a URL."""


def open_key_source(
    config: IssuerSettings, *, clock: Clock, loader_of: LoaderOf | None = None
) -> KeySource:
    """The keys that an issuer is configured with; a file is read here.

    Args:
        config: The issuer.
        clock: For what is read again.
        loader_of: Reads URLs; without it none is taken.

    Raises:
        ConfigError: The file cannot be read, or holds no key that can be used.
    """
    if config.jwks_file is not None:
        path = config.jwks_file
        first = _read(path, "jwks_file")
        return RefreshedKeys(
            file_loader(path), source=f"jwks_file {path}", clock=clock, first=first
        )
    if config.jwks_url is not None:
        if loader_of is None:
            raise ConfigError(f"jwks_url {config.jwks_url}: is not fetched here; use jwks_file")
        source = f"jwks_url {config.jwks_url}"
        return RefreshedKeys(loader_of(config.jwks_url), source=source, clock=clock)
    if config.shared_secret_file is not None:
        secret = _read(config.shared_secret_file, "shared_secret_file").rstrip()
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"shared_secret_file {config.shared_secret_file}: holds {len(secret)} bytes; "
                f"an HS256 secret has at least {MIN_SECRET_BYTES}"
            )
        return SharedSecret(secret)
    raise ConfigError(f"issuer {config.issuer}: has no source of keys")


def file_loader(path: Path) -> Load:
    """Reads a file when its time, size or inode changed."""

    def read(tag: str) -> Loaded:
        try:
            found = path.stat()
            now = f"{found.st_mtime_ns}/{found.st_size}/{found.st_ino}"
            text = None if now == tag else path.read_bytes()
        except OSError as error:
            raise SourceAway(f"cannot be read: {error.strerror}") from None
        return Loaded(text, now, FILE_FRESH_S)

    async def load(tag: str) -> Loaded:
        return await asyncio.to_thread(read, tag)

    return load


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field} {path}: cannot be read: {error.strerror}") from None
