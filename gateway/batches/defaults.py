"""What a row asks for, over what all rows do. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from reelmesh.v1 import video_pb2

# What a row says of one of these replaces all that the defaults say of any.
EXCLUSIVE: Final = (("resolution", "width", "height"), ("seconds", "num_frames"))


def replaced(spec: video_pb2.VideoSpec, unfit: Collection[str] = ()) -> set[str]:
    """The fields of the defaults that a row's own do away with.

    Args:
        spec: What the row says.
        unfit: Fields that it says too, though the message cannot hold them.
    """
    said = {field.name for field, _ in spec.ListFields()} | set(unfit)
    return {name for names in EXCLUSIVE if said & set(names) for name in names}


def over(
    defaults: video_pb2.VideoSpec, spec: video_pb2.VideoSpec, unfit: Collection[str] = ()
) -> video_pb2.VideoSpec:
    """The row's spec with the defaults where it says nothing."""
    made = video_pb2.VideoSpec()
    made.CopyFrom(defaults)
    for name in replaced(spec, unfit):
        made.ClearField(name)  # type: ignore[arg-type] # any of its fields
    made.MergeFrom(spec)
    return made
