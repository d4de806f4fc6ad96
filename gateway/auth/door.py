"""Who calls, at either edge: the token, and how often its address came without one."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.application import Caller
from gateway.auth.config import StrangerConfig
from gateway.auth.rates import Allowance, Rates, Unlimited
from gateway.auth.strangers import Refusals, client_of, is_in, networks_of
from gateway.auth.tokens import TokenVerifier
from gateway.errors import TooManyRefusals, Unauthenticated
from reelkit.clock import Clock


class Door:
    """Lets callers in whose token holds.

    Args:
        verifier: Looks at tokens.
        config: How often an address may be refused.
        clock: For that.
        rates: How often a tenant may call; as often as it likes by default.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        config: StrangerConfig,
        *,
        clock: Clock,
        rates: Rates | None = None,
    ) -> None:
        self._verifier = verifier
        self._rates = rates or Unlimited()
        self._clock = clock
        self._trusted = networks_of(config.trusted_proxies)
        self._refusals = Refusals(per_s=config.refusals_per_s, burst=config.burst)

    def address_of(self, remote: str | None, forwarded: Sequence[str]) -> str:
        """The address that a call is counted under; see :func:`client_of`."""
        return client_of(remote, forwarded, self._trusted)

    def trusts(self, remote: str | None) -> bool:
        """Whether an address is one of the proxies in front, through which many come."""
        return is_in(remote, self._trusted)

    async def enter(self, authorization: str | None, address: str) -> Caller:
        """The caller that a header value such as ``Bearer eyJ...`` stands for.

        Raises:
            TooManyRefusals: The address was refused too often, and the token is not known to
                hold; it was not looked at.
            Unauthenticated: What is wrong with the token.
            KeysAway: Nothing can be said of it yet.
        """
        if self._refusals.wait_s(address, self._clock.monotonic()) > 0:
            known = self._verifier.known(authorization)
            if known is None:
                self._check(address)
            else:
                return known
        try:
            return await self._verifier.verify(authorization)
        except Unauthenticated:
            self._refusals.charge(address, self._clock.monotonic())
            raise

    async def charge(self, caller: Caller) -> Allowance | None:
        """Counts a call of somebody who was let in; None: the tenant is not limited.

        Raises:
            RequestQuota: It was one too many.
            QuotaUnknown: Whether it is cannot be said here.
        """
        return await self._rates.charge(caller.tenant)

    def note_stranger(self, address: str) -> None:
        """Counts a call of something that there is not, which asks for no token.

        Raises:
            TooManyRefusals: The address did so too often.
        """
        self._check(address)
        self._refusals.charge(address, self._clock.monotonic())

    def _check(self, address: str) -> None:
        wait_s = self._refusals.wait_s(address, self._clock.monotonic())
        if wait_s > 0:
            raise TooManyRefusals(
                "too many calls without a token that holds came from this address",
                retry_after_s=wait_s,
            )
