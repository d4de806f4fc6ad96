"""Whether a node that does not come up is worth waiting for: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass

# Long enough for a passing fault, such as weights that a store gives at the second try.
UNHEALTHY_LIMIT_S = 10.0
# A worker that died by chance is loaded again; one that dies each time never will be.
UNHEALTHY_TIMES = 3


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What was seen of a node since it was last ready."""

    ready: bool = False
    unhealthy: bool = False
    first_unhealthy_s: float = 0.0
    times: int = 0

    def seen(self, *, ready: bool, unhealthy: bool, now_s: float) -> NodeHealth:
        """The health after one more status."""
        if ready:
            return NodeHealth(ready=True)
        if not unhealthy:
            return NodeHealth(False, False, self.first_unhealthy_s, self.times)
        first_s = self.first_unhealthy_s if self.times else now_s
        return NodeHealth(False, True, first_s, self.times + (not self.unhealthy))

    def hopeless(self, *, now_s: float) -> bool:
        """Whether it is unhealthy now and was too long or too often."""
        return self.unhealthy and (
            self.times >= UNHEALTHY_TIMES or now_s - self.first_unhealthy_s > UNHEALTHY_LIMIT_S
        )
