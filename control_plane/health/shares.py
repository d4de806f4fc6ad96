"""How many nodes may fail at once before it is the observer who is doubted. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def too_many(failing: int, total: int, *, max_share: float) -> bool:
    """Whether so many fail that their failing says more of us than of them.

    One of any number may always fail. Rises with ``failing``, falls with ``total``.
    """
    return failing > max(1, int(total * max_share))


def believable_losses(
    lost_at_s: Mapping[str, float], *, present: int, window_s: float, max_share: float
) -> frozenset[str]:
    """The nodes, of those that vanished, that may be called lost on that evidence alone.

    A node is left out where it vanished within ``window_s`` (a lease's time) of so many
    others that together they were more than ``max_share`` of the fleet: leases run out
    like that when the store or the control planes were away, with every node at work.

    Args:
        lost_at_s: When each node vanished; those of the last two windows are enough.
        present: Nodes that are there now.
        window_s: Seconds that count as "at once".
        max_share: See :class:`~control_plane.health.config.HealthSettings`.
    """
    ordered = sorted(lost_at_s.items(), key=lambda item: item[1])
    doubted: set[str] = set()
    begin = 0
    for end, (_, at_s) in enumerate(ordered):
        while at_s - ordered[begin][1] > window_s:
            begin += 1
        together = ordered[begin : end + 1]
        if too_many(len(together), present + len(ordered) - begin, max_share=max_share):
            doubted.update(node for node, _ in together)
    return frozenset(lost_at_s) - doubted
