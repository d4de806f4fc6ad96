"""Who we are at etcd: a user's password, turned into tokens that expire (R8)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from control_plane.errors import StoreDeniedError
from control_plane.store.etcd.connection import EtcdSettings
from reelkit.settings import blame_field


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """A user and where the password lies."""

    user: str
    password_file: Path

    def password(self) -> str:
        """The password as the file holds it now: it may have been changed since.

        Raises:
            StoreDeniedError: The file cannot be read.
        """
        try:
            return self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreDeniedError(f"etcd.password_file cannot be read: {error}") from None


def login_of(settings: EtcdSettings) -> Login | None:
    """The login that the settings name, or None where etcd has no users.

    Raises:
        ConfigError: The password cannot be read; later on that is the store's trouble.
    """
    if settings.user is None or settings.password_file is None:
        return None
    with blame_field("etcd.password_file", settings.password_file):
        settings.password_file.open("rb").close()
    return Login(settings.user, settings.password_file)
