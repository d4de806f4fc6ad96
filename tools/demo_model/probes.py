"""Runs a model's golden probes: ``python -m tools.demo_model.probes FOLDER``.

A probe is a sentence, a seed and what must be seen in the clip. It compares what is measured in
the picture, never bytes: floats differ from one processor to the next.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from node_agent.manifest import GoldenProbe
from node_agent.model_folder import open_model_folder
from tools.demo_model.engine_artist import EngineArtist, decode_mp4
from tools.demo_model.evaluator import look_at


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What one probe asked for and what was seen.

    Attributes:
        name: the probe's name in the manifest.
        differences: "attribute: expected X, seen Y" for each one that is wrong.
    """

    name: str
    differences: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether everything was as expected."""
        return not self.differences


def run_probe(probe: GoldenProbe, artist: EngineArtist) -> ProbeResult:
    """Draw one golden probe and compare what is seen with what it expects."""
    changes = {"steps": probe.steps, "num_frames": probe.num_frames}
    given = {name: value for name, value in changes.items() if value is not None}
    clip = decode_mp4(artist.video(probe.prompt, probe.seed, **given))
    sight = dataclasses.asdict(look_at(clip))
    differences = [
        f"{name}: expected {value}, seen {sight.get(name, 'nothing of that name')}"
        for name, value in probe.expect.items()
        if sight.get(name) != value
    ]
    return ProbeResult(probe.name, tuple(differences))


def main() -> int:
    """Print each probe's outcome; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model folder, such as node_agent/models/demo")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: torch's choice)")
    options = parser.parse_args()
    with EngineArtist(options.folder, threads=options.threads) as artist:
        passed = True
        for probe in open_model_folder(options.folder).manifest.golden_probes:
            result = run_probe(probe, artist)
            passed = passed and result.passed
            print(f"{result.name}: {'; '.join(result.differences) or 'as expected'}", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
