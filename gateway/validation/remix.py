"""A request that changes another video's prompt. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from reelmesh.v1 import video_pb2


def remixed(
    spec: video_pb2.VideoSpec, original: video_pb2.ResolvedSpec, unfit: Mapping[str, int]
) -> video_pb2.VideoSpec:
    """The request with the original's settings where it names none.

    The prompt alone is never the original's. Of the model it is the name, whose version follows
    the rollout; of the steps, as many as there would have been without load.

    Args:
        spec: What is asked for; it stays as it is.
        original: What the other video was made with.
        unfit: Names of fields that were asked for and that the spec cannot hold.
    """
    merged = video_pb2.VideoSpec()
    merged.CopyFrom(spec)

    def asks(*names: str) -> bool:
        return any(name in unfit or spec.HasField(name) for name in names)  # type: ignore[arg-type] # optional ones

    merged.model = spec.model or original.model
    merged.quality = spec.quality or original.quality
    if not (spec.resolution or asks("width", "height")):
        merged.width, merged.height = original.width, original.height
    if not asks("num_frames", "seconds"):
        merged.num_frames = original.num_frames
    if not asks("negative_prompt"):
        merged.negative_prompt = original.negative_prompt
    if not asks("steps"):
        merged.steps = original.unloaded_steps or original.steps
    if not asks("guidance_scale"):
        merged.guidance_scale = original.guidance_scale
    if not asks("flow_shift"):
        merged.flow_shift = original.flow_shift
    if not asks("seed"):
        merged.seed = original.seed
    return merged
