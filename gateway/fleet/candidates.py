"""Which nodes may get new work: the node's word, the control plane's and our own eyes. Pure.

What always holds, and ``tests/unit/test_gateway_candidates.py`` checks:

1. A node is a candidate only while this gateway's own stream to it lives and the node says
   READY there. A broken stream counts against no cap: it takes a node out at once.
2. DRAINING and CORDONED, as the control plane tells it, take a node out whatever it says.
3. UNHEALTHY and LOST do the same, by what the control plane sees and the node does not, such
   as calls that fail. Where that would leave no candidate, and more than 55% of the known
   nodes are said to be so or have vanished from the list, what this gateway sees rules:
   so many do not fail at once, and work that has nowhere to go loses nothing by trying.
4. A word about another life of the node, or one older than the stream it came by, is none:
   with the control plane away the gateway goes on by what it sees.
5. Nodes that fail runs rest (see :mod:`gateway.fleet.ejection`), but never more than half
   of the candidates at once; those beyond are on trial like one whose rest has ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from reelmesh.v1 import node_pb2
from reelmesh.v1.node_pb2 import NodeState

MAX_RESTING_RATIO: Final = 0.5
MASS_RATIO: Final = 0.55

_DECIDED: Final = (node_pb2.NODE_STATE_DRAINING, node_pb2.NODE_STATE_CORDONED)
_UNFIT: Final = (node_pb2.NODE_STATE_UNHEALTHY, node_pb2.NODE_STATE_LOST)

NO_WORD: Final = node_pb2.NODE_STATE_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a node."""

    node_id: str
    ready: bool
    """The stream to it lives, and READY came by it."""
    said: NodeState.ValueType = NO_WORD
    """The control plane's word of this very life, while it holds; else :data:`NO_WORD`."""
    listed: bool = True
    """Whether the control plane still lists it."""
    suspect: bool = False
    """It rests, or is on trial."""
    rests_until_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may get new work until :attr:`until_s`, if nothing else changes before."""

    routable: frozenset[str]
    on_trial: frozenset[str]
    """Those of the routable that get one run at a time."""
    own_eyes: bool
    """The control plane's word is not followed: see rule 3."""
    until_s: float


def candidates(sights: Collection[Sight], now_s: float) -> Candidates:
    """Judges every node by the rules of this module."""
    able = [s for s in sights if s.ready and s.said not in _DECIDED]
    well = [s for s in able if s.said not in _UNFIT]
    gone = sum(s.said in _UNFIT or not s.listed for s in sights)
    own_eyes = bool(able) and not well and gone > MASS_RATIO * len(sights)
    chosen = able if own_eyes else well
    suspects = [s for s in chosen if s.suspect]
    resting = sorted(
        (s for s in suspects if s.rests_until_s > now_s),
        key=lambda s: (s.rests_until_s, s.node_id),
        reverse=True,
    )[: int(MAX_RESTING_RATIO * len(chosen))]
    out = {s.node_id for s in resting}
    return Candidates(
        routable=frozenset(s.node_id for s in chosen if s.node_id not in out),
        on_trial=frozenset(s.node_id for s in suspects if s.node_id not in out),
        own_eyes=own_eyes,
        until_s=min((s.rests_until_s for s in resting), default=math.inf),
    )
