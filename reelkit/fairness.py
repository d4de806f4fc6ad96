"""Fair shares of something that is given out piece by piece: start-time fair queueing. Pure.

Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996. Each flow has a tag, the virtual
time at which its next piece is due; who has the least tag is served next, and its tag moves on
by what it got, divided by its weight. Virtual time is the tag that was served last: a flow that
was idle begins there, so that idleness earns nothing.

Invariants (tests/unit/test_reelkit_fairness.py): between two flows that both have work all the
time, what each got divided by its weight differs by at most one piece of each, whatever the
sizes; so everybody's turn comes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# Flows that are ahead of the virtual time are remembered; of more the last few are forgotten.
MAX_FLOWS = 4_096


class FairShares(Generic[K]):
    """What flows got, as far as that still counts."""

    def __init__(self, *, max_flows: int = MAX_FLOWS) -> None:
        self._max_flows = max_flows
        self._virtual = 0.0
        self._due: dict[K, float] = {}

    def __len__(self) -> int:
        """Flows that got more than is due to them."""
        return len(self._due)

    def tag(self, flow: K) -> float:
        """When the flow's next piece is due, in virtual time."""
        return max(self._virtual, self._due.get(flow, 0.0))

    def lead(self, flow: K) -> float:
        """How far it is ahead of what is due to it; 0 for one that got nothing lately."""
        return self.tag(flow) - self._virtual

    def serve(self, flow: K, cost: float) -> None:
        """The flow got a piece; ``cost`` is its size by the flow's weight."""
        tag = self.tag(flow)
        self._virtual = max(self._virtual, tag)
        self._due[flow] = tag + cost
        if len(self._due) > self._max_flows:
            self._forget_some()

    def forget(self) -> None:
        """Nobody has any work left: all begin anew as equals."""
        self._virtual = 0.0
        self._due.clear()

    def _forget_some(self) -> None:
        ahead = [flow for flow, due in self._due.items() if due > self._virtual]
        ahead.sort(key=self._due.__getitem__, reverse=True)
        kept = ahead[: self._max_flows // 2]
        self._due = {flow: self._due[flow] for flow in kept}


def in_turn(
    flows: Mapping[K, Sequence[T]],
    *,
    tag: Callable[[K], float],
    cost: Callable[[T], float],
    tie: Callable[[T], Any],
) -> Iterator[T]:
    """All pieces in the order in which they would be served if nothing came any more.

    Args:
        flows: The pieces of each flow, in the flow's own order.
        tag: When the flow's first piece is due.
        cost: A piece's size by its flow's weight.
        tie: Which of two that are due at the same time goes first; no two pieces are equal.
    """
    heap = [(tag(flow), tie(pieces[0]), 0, pieces) for flow, pieces in flows.items() if pieces]
    heapq.heapify(heap)
    while heap:
        due, _, index, pieces = heap[0]
        yield pieces[index]
        following = index + 1
        if following < len(pieces):
            due += cost(pieces[index])
            heapq.heapreplace(heap, (due, tie(pieces[following]), following, pieces))
        else:
            heapq.heappop(heap)
