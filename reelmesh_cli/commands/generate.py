"""``reelmesh generate``: one video from any mesh."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from reelmesh_cli import console, contact_sheet, facts
from reelmesh_cli.config import open_client
from reelmesh_cli.errors import StoppedError, UsageError
from reelmesh_cli.outputs import check_file
from wan_t2v_sdk import AsyncTextToVideoGenerator, GenerationResult, VideoSettings

TIMEOUT_S = 1_800.0
HELP = """Make one video and save it.

The mesh is the one that --mesh names, else that of REELMESH_ENDPOINTS and REELMESH_TOKEN,
else mesh-state/mesh.json below this folder.

\b
  reelmesh generate "a big red ball bouncing"
  reelmesh generate "a blue square" --resolution 480p --seconds 2 -o sq.mp4
  reelmesh generate "一个绿色的三角形" --seed 7 --contact-sheet sheet.png
  reelmesh generate "a cat" --json | jq -r .path

Ctrl-C cancels the video."""

MeshOption = Annotated[
    Path | None, typer.Option(help="mesh.json of `reelmesh up`, or its folder.", show_default=False)
]
RegionOption = Annotated[
    str, typer.Option(help="A region's name; auto measures them and takes the nearest that serves.")
]


class PriorityName(StrEnum):
    """Which jobs go first where machines are short."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


PriorityOption = Annotated[
    PriorityName | None,
    typer.Option(
        help="interactive goes before batch; by default the tenant's.", show_default=False
    ),
]
_OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The MP4; by default the video's id.", show_default=False),
]
_SheetOption = Annotated[
    Path | None, typer.Option("--contact-sheet", help="Also write a row of frames as a PNG.")
]
_QualityOption = Annotated[
    str | None, typer.Option(help="auto: under load in fewer steps, which the facts say.")
]
TimeoutOption = Annotated[float, typer.Option(help="Seconds that a video may take.", min=0.1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the video goes and how it is told."""

    video: Path | None
    sheet: Path | None
    as_json: bool


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.", show_default=False)],
    output: _OutputOption = None,
    resolution: Annotated[
        str | None, typer.Option(help="A named size of the model, such as 480p.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; with --height.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; with --width.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length in seconds.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames, instead of --seconds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same video.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow.")] = None,
    flow_shift: Annotated[float | None, typer.Option(help="Shift of the noise schedule.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it should not show.")] = None,
    model: Annotated[str | None, typer.Option(help="name, or name@version.")] = None,
    quality: _QualityOption = None,
    priority: PriorityOption = None,
    sheet: _SheetOption = None,
    region: RegionOption = "auto",
    mesh: MeshOption = None,
    timeout: TimeoutOption = TIMEOUT_S,
    json_output: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Runs the command; see :data:`HELP`."""
    settings = VideoSettings(
        resolution=resolution,
        width=width,
        height=height,
        length_sec=seconds,
        num_frames=num_frames,
        steps=steps,
        seed=seed,
        guidance_scale=guidance_scale,
        flow_shift=flow_shift,
        negative_prompt=negative_prompt,
        model=model,
        quality=quality,
    )
    target = Output(video=output, sheet=sheet, as_json=json_output)
    check_output(target)
    try:
        asyncio.run(
            _generate(
                prompt,
                settings,
                target,
                priority=priority,
                region=region,
                mesh=mesh,
                timeout_s=timeout,
            )
        )
    except KeyboardInterrupt:
        raise StoppedError(
            "interrupted: the video is cancelled and nothing was saved",
            hint="run the same command again to make it anew",
        ) from None


def check_output(output: Output) -> None:
    """Makes sure that the results can be written before the work is done.

    Raises:
        UsageError: One of them cannot; says which and why.
    """
    # Without a name the video lies in the current folder.
    check_file("--output", output.video or Path("video.mp4"))
    if output.sheet is not None:
        check_file("--contact-sheet", output.sheet)
        if output.video is not None and output.sheet.resolve() == output.video.resolve():
            raise UsageError("--output and --contact-sheet name the same file")


async def _generate(
    prompt: str,
    settings: VideoSettings,
    output: Output,
    *,
    priority: PriorityName | None,
    region: str,
    mesh: Path | None,
    timeout_s: float,
) -> None:
    async with open_client(mesh, region=region, timeout_s=timeout_s) as client:
        await make_video(client, prompt, settings, output, priority=priority)


async def make_video(
    client: AsyncTextToVideoGenerator,
    prompt: str,
    settings: VideoSettings,
    output: Output,
    *,
    priority: PriorityName | None = None,
) -> GenerationResult:
    """Makes one video with a progress bar, saves it and tells its facts."""
    result = await client.generate(
        prompt,
        progress=False if output.as_json else None,
        priority=None if priority is None else priority.value,
        **settings,
    )
    path = result.save(output.video or Path(f"{result.id}.mp4"))
    if output.sheet is not None:
        contact_sheet.write_sheet(np.asarray(result["tensor"]), output.sheet)
    if output.as_json:
        console.print_json(facts.facts_json(result, path, sheet=output.sheet))
    else:
        console.out.print(facts.facts_table(result, path, sheet=output.sheet))
    return result
