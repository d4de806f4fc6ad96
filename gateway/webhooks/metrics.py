"""What is counted of webhooks, in Prometheus names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class WebhookMetrics:
    """Counts what becomes of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._outcomes = Counter(
            "reelmesh_gateway_webhooks",
            "Webhooks by outcome: delivered, given_up, gone with what they told of; and tries that "
            "failed or were held_back from a host that fails.",
            ("outcome",),
            registry=registry,
        )

    def webhook(self, outcome: str) -> None:
        """Counts what became of a webhook, or of one try."""
        self._outcomes.labels(outcome).inc()
