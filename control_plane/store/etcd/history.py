"""Notices that the store behind the endpoints is no longer the one it was (R7)."""

from __future__ import annotations

import dataclasses

import structlog

from control_plane.errors import StoreRestoredError
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb

_log = structlog.get_logger("control_plane.store.history")


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """The newest position that was known when a request was sent."""

    generation: int = 0
    cluster_id: int = 0
    revision: int = 0
    raft_term: int = 0


class History:
    """Follows the headers of linearizable answers, which can only rise.

    An answer is compared with what was known before its request was sent, since
    answers overtake one another. Headers of watches and leases are no evidence: they
    show one member's local view, which may lag.
    """

    def __init__(self) -> None:
        self._mark = Mark()

    @property
    def mark(self) -> Mark:
        """Take it before sending; give it to :meth:`check` with the answer."""
        return self._mark

    @property
    def generation(self) -> int:
        """Rises with each restore that was noticed."""
        return self._mark.generation

    def check(self, before: Mark, header: pb.ResponseHeader) -> None:
        """Takes an answer's header into account.

        Raises:
            StoreRestoredError: The answer comes from another history than ``before``. From
                then on the new history is the known one.
        """
        if before.generation != self._mark.generation:
            raise StoreRestoredError("the store was restored while this call was on its way")
        other_cluster = before.cluster_id not in (0, header.cluster_id)
        if (
            other_cluster
            or header.revision < before.revision
            or header.raft_term < before.raft_term
        ):
            self._mark = Mark(
                generation=before.generation + 1,
                cluster_id=header.cluster_id,
                revision=header.revision,
                raft_term=header.raft_term,
            )
            _log.warning(
                "the store's history went backwards: it was restored",
                before=dataclasses.asdict(before),
                now=dataclasses.asdict(self._mark),
            )
            raise StoreRestoredError(
                f"the store's history went backwards: revision {before.revision} before, "
                f"{header.revision} now"
            )
        self._mark = Mark(
            generation=self._mark.generation,
            cluster_id=header.cluster_id,
            revision=max(self._mark.revision, header.revision),
            raft_term=max(self._mark.raft_term, header.raft_term),
        )
