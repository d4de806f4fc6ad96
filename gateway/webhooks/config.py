"""Configuration of webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from gateway.webhooks.addresses import UrlRules
from gateway.webhooks.signing import BadSecret, parse_secret
from reelkit.settings import Settings


class WebhookConfig(Settings):
    """Whether and how clients may be told of an end at a URL of theirs."""

    enabled: bool = Field(
        default=False,
        description="Whether webhook_url is taken. Off by default: it has the gateway call "
        "addresses that clients choose. Off, a request with one is refused.",
    )
    secret_files: tuple[Path, ...] = Field(
        default=(),
        max_length=2,
        description="Files with a secret each, whsec_ and 24 to 64 bytes in base64; every webhook "
        "is signed with all of them. Two while receivers change from the old to the new.",
    )
    allow_http: bool = Field(
        default=False,
        description="Takes http:// too, for tests and sites of their own. What is sent can be read "
        "and changed on its way then.",
    )
    allow_private: bool = Field(
        default=False,
        description="Calls private and loopback addresses too, for tests and sites of their own. "
        "Clients can reach what the gateway can reach then.",
    )
    ports: tuple[int, ...] = Field(
        default=(443,),
        description="Ports that URLs may name; empty: any. 443 alone, since others belong to "
        "databases and consoles as a rule.",
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts that URLs may name, such as hooks.example.com, or *.example.com for all "
        "below; empty: any.",
    )
    timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="Seconds for a delivery, from the look-up of its host to the status line.",
    )
    give_up_after_s: float = Field(
        default=24 * 3600.0,
        gt=0,
        le=7 * 24 * 3600,
        description="Seconds after the end for which a failing delivery is tried again; never "
        "longer than the record is kept (artifacts.retention_s, batches.retention_s).",
    )
    max_pending: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Undelivered webhooks that this gateway holds, a task each. Others "
        "stay in etcd and have their turn later.",
    )
    max_parallel: int = Field(
        default=32, ge=1, le=1_000, description="Deliveries under way at once."
    )
    max_parallel_per_host: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Of these, to one host: a slow receiver does not hold up others'.",
    )

    @model_validator(mode="after")
    def _has_secrets(self) -> Self:
        if self.enabled and not self.secret_files:
            raise ValueError("enabled needs secret_files: a webhook is never sent unsigned")
        return self

    @property
    def rules(self) -> UrlRules:
        """What a URL must be."""
        return UrlRules(
            enabled=self.enabled,
            allow_http=self.allow_http,
            allow_private=self.allow_private,
            ports=self.ports,
            hosts=self.hosts,
        )

    def secrets(self) -> tuple[bytes, ...]:
        """The keys to sign with.

        Raises:
            OSError: A file cannot be read.
            ValueError: It holds no secret.
        """
        found = []
        for path in self.secret_files:
            try:
                found.append(parse_secret(path.read_text(encoding="ascii").strip()))
            except BadSecret as error:
                raise ValueError(f"{path}: {error}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{path}: is not ASCII") from None
        return tuple(found)
