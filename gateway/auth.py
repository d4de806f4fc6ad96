"""Bearer tokens: who calls, or why the token does not hold."""

from __future__ import annotations

from gateway.application import Caller
from gateway.auth_config import AuthConfig
from reelkit.clock import Clock


class TokenVerifier:
    """Turns an ``Authorization`` value into a :class:`gateway.application.Caller`.

    Args:
        config: Issuers and limits; their key files are read here, once.
        clock: Where "now" comes from; exp, nbf and iat are compared with its wall time.

    Raises:
        AuthConfigError: A key file is missing, or a key in it cannot be used.
    """

    def __init__(self, config: AuthConfig, *, clock: Clock) -> None:
        self._config = config
        self._clock = clock

    async def verify(self, authorization: str | None) -> Caller:
        """The caller that a header value such as ``Bearer eyJ...`` stands for.

        Raises:
            Unauthenticated: A subclass with its own code says what is wrong.
        """
        raise NotImplementedError
