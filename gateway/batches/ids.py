"""Ids of batches: ``batch_`` and what a video's id would be, home region included."""

from __future__ import annotations

from typing import Final

from gateway.errors import BatchElsewhere, BatchNotFound
from gateway.jobs.ids import region_of

PREFIX: Final = "batch_"


def batch_region_of(batch_id: str) -> str | None:
    """The home region that an id names, or None where it is no batch's id."""
    return region_of(batch_id.removeprefix(PREFIX)) if batch_id.startswith(PREFIX) else None


def no_such_batch(batch_id: str, *, region: str) -> BatchNotFound | BatchElsewhere:
    """What to tell of a batch that ``region`` does not have; the id alone decides."""
    home = batch_region_of(batch_id)
    if home is not None and home != region:
        return BatchElsewhere(home)
    return BatchNotFound("there is no such batch; ended ones are kept for a day")
