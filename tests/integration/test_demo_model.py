"""The model that ships: what it weighs, and what its golden probes see through a real worker."""

import pytest
from safetensors.torch import load_file

from node_agent.model_folder import open_model_folder
from tests.support.models import DEMO_MODEL
from tools.demo_model.engine_artist import EngineArtist, EngineError
from tools.demo_model.probes import run_probe
from tools.demo_model.versions import V2_DELTA, make_bad_version, make_second_version

LARGEST_WEIGHTS_BYTES = 16_000_000
LARGEST_DELTA_BYTES = 1_000_000


def test_the_shipped_weights_are_small_and_whole():
    folder = open_model_folder(DEMO_MODEL)
    folder.verify_files()
    weights = [file.stat().st_size for file in DEMO_MODEL.rglob("*.safetensors")]
    assert len(weights) == 3
    assert sum(weights) <= LARGEST_WEIGHTS_BYTES


def test_the_golden_probes_of_the_shipped_model_pass():
    probes = open_model_folder(DEMO_MODEL).manifest.golden_probes
    assert len(probes) == 3
    with EngineArtist(DEMO_MODEL, threads=1) as artist:
        results = [run_probe(probe, artist) for probe in probes]
    assert [result.differences for result in results] == [()] * len(probes)


def test_a_bad_version_loads_and_its_probes_fail(tmp_path):
    folder = make_bad_version(DEMO_MODEL, tmp_path / "bad")
    assert folder.manifest.version == "v-bad"
    folder.verify_files()
    with EngineArtist(folder.path, threads=1) as artist:
        result = run_probe(folder.manifest.golden_probes[0], artist)
    assert not result.passed
    assert any(difference.startswith("color: expected red") for difference in result.differences)


def test_the_second_version_is_the_first_with_a_small_delta(tmp_path):
    folder = make_second_version(DEMO_MODEL, tmp_path / "second")
    assert folder.manifest.version == "v2"
    folder.verify_files()
    assert V2_DELTA.stat().st_size <= LARGEST_DELTA_BYTES
    changed = {
        path.parent.name
        for path in DEMO_MODEL.rglob("*.safetensors")
        if load_file(path).keys() != load_file(folder.path / path.relative_to(DEMO_MODEL)).keys()
        or path.read_bytes() != (folder.path / path.relative_to(DEMO_MODEL)).read_bytes()
    }
    assert changed == {name.split(".")[0] for name in load_file(V2_DELTA)}


def test_a_model_that_is_damaged_is_refused_by_name(tmp_path):
    folder = make_bad_version(DEMO_MODEL, tmp_path / "damaged")
    weights = next(folder.path.rglob("transformer/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"model_invalid.*transformer"), EngineArtist(folder.path):
        pass
