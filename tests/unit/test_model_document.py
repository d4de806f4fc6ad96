"""Manifests that reelctl writes are manifests that nodes take."""

import json
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from reelmesh.v1 import manifest_pb2

from control_plane.reelctl.errors import CtlError
from control_plane.reelctl.sources import document
from control_plane.reelctl.sources.document import File
from node_agent.manifest import Manifest
from tests.support.models import DEMO_MODEL, REPO
from tests.support.weights import FIELDS

MODELS = REPO / "node_agent" / "models"
A_FILE = File("model.safetensors", "0" * 64, 10)
# What only adapters have; the node's schema of models lacks it.
ADAPTERS_OWN = {"kind", "base"}


def compose(fields=FIELDS, files=(A_FILE,), **changes):
    return document.compose(fields, files, **{"name": "m", "version": "v1", **changes})


def fields_of(descriptor: Descriptor) -> set[str]:
    return {field.name for field in descriptor.fields}


def model_of(annotation: object) -> type[BaseModel] | None:
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def compare(model: type[BaseModel], descriptor: Descriptor, own: set[str]) -> None:
    assert set(model.model_fields) == fields_of(descriptor) - own
    for name, field in model.model_fields.items():
        inner, proto = model_of(field.annotation), descriptor.fields_by_name[name]
        if inner is not None and proto.message_type is not None:
            message = proto.message_type
            entry = message.GetOptions().map_entry
            compare(
                inner, message.fields_by_name["value"].message_type if entry else message, set()
            )


def test_both_schemas_have_the_same_fields_down_to_the_leaves():
    compare(Manifest, manifest_pb2.ModelManifest.DESCRIPTOR, ADAPTERS_OWN)


@pytest.mark.parametrize(
    "file", sorted(MODELS.rglob("*manifest.json")), ids=lambda f: f.parent.name
)
def test_every_manifest_of_this_project_is_read_by_both(file: Path):
    fields, _ = document.parse(file.read_bytes(), where=str(file))
    made = compose(fields, name=fields["name"], version=fields["version"])
    Manifest.model_validate_json(made.data)


def test_the_same_content_is_the_same_bytes_in_whatever_order_it_came():
    files = [File(f"{letter}.safetensors", letter * 64, 1) for letter in "abc"]
    backwards = dict(reversed(FIELDS.items()))
    assert compose(FIELDS, files).data == compose(backwards, files[::-1]).data


def test_a_manifest_that_says_the_same_already_is_kept_byte_for_byte():
    own = (DEMO_MODEL / "manifest.json").read_bytes()
    fields, files = document.parse(own, where="demo")
    said = {"name": fields["name"], "version": fields["version"]}
    assert compose(fields, files, found=own, **said).data == own
    assert compose(fields, files, found=own, name="demo", version="other").data != own
    assert compose(fields, files[:-1], found=own, **said).data != own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "colour"),
        ({"sizes": "big"}, "sizes"),
        ({"fps": "fast"}, "fps"),
        ({"frames": {"min": 1, "max": 2, "skip": 1}}, "skip"),
    ],
)
def test_a_wrong_field_is_named(change, said):
    with pytest.raises(CtlError) as raised:
        compose({**FIELDS, **change})
    assert said in raised.value.message


@pytest.mark.parametrize("field", ["sizes", "frames", "fps", "defaults", "vram_gb"])
def test_a_missing_field_is_named(field):
    with pytest.raises(CtlError, match=field):
        compose({name: value for name, value in FIELDS.items() if name != field})


def test_an_adapter_needs_nothing_but_its_base():
    made = compose(None, base="wan")
    assert json.loads(made.data)["kind"] == "lora"
    assert document.read(made.data, where="it").message.base == "wan"
    with pytest.raises(CtlError, match="adapter"):
        compose({**FIELDS, "kind": "lora", "base": "wan"})


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data):
    # No bytes of that length list a file.
    with pytest.raises(CtlError, match=r"^it: "):
        document.read(data, where="it")
