"""Which registered versions a node believes."""

import hashlib
import json

import pytest
from reelmesh.v1 import registry_pb2 as reg

from node_agent.errors import WeightsError
from node_agent.trust import MEDIA_TYPE, check_version, read_trusted_keys
from reelkit.signatures import FORMAT
from tests.support.weights import FIELDS, signing_key


@pytest.fixture
def key(tmp_path):
    return signing_key(tmp_path)[0]


def described(**changes):
    files = [{"path": "model.safetensors", "sha256": "a" * 64, "size_bytes": 3}]
    return json.dumps({**FIELDS, "name": "m", "version": "v1", "files": files, **changes}).encode()


def record(data, *keys, **changes):
    model = reg.RegisteredModel(
        name="m",
        version="v1",
        kind=reg.MODEL_KIND_MODEL,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )
    for each in keys:
        signed = each.sign(MEDIA_TYPE, data)
        model.signatures.add(format=FORMAT, key_id=signed.key_id, signature=signed.signature)
    for field, value in changes.items():
        setattr(model, field, value)
    return model


def test_what_a_trusted_key_signed_is_believed(key):
    data = described()
    version = check_version(record(data, key), data, keys=[key.public], required=True)
    assert (version.name, version.files[0].path) == ("m", "model.safetensors")


def test_one_trusted_signature_among_others_is_enough(key, tmp_path):
    other, data = signing_key(tmp_path, "other")[0], described()
    check_version(record(data, other, key), data, keys=[key.public], required=True)


@pytest.mark.parametrize("required", [True, False])
def test_a_signature_that_does_not_hold_is_refused_required_or_not(key, required):
    data = described()
    model = record(data, key)
    model.signatures[0].signature = bytes(64)
    with pytest.raises(WeightsError, match="does not hold"):
        check_version(model, data, keys=[key.public], required=required)


def test_a_signature_of_another_kind_of_document_does_not_hold(key):
    data = described()
    model = record(data, key)
    model.signatures[0].signature = key.sign("text/plain", data).signature
    with pytest.raises(WeightsError, match="does not hold"):
        check_version(model, data, keys=[key.public], required=True)


def test_an_unknown_key_no_signature_and_nobody_trusted_are_told_apart(key, tmp_path):
    data, other = described(), signing_key(tmp_path, "other")[0]
    with pytest.raises(WeightsError, match=f"is signed by {key.public.key_id}, which is not in"):
        check_version(record(data, key), data, keys=[other.public], required=True)
    with pytest.raises(WeightsError, match="is not signed"):
        check_version(record(data), data, keys=[key.public], required=True)
    with pytest.raises(WeightsError, match="trusts nobody's signature"):
        check_version(record(data, key), data, keys=[], required=True)
    # Where the operator allows it.
    check_version(record(data), data, keys=[], required=False)
    check_version(record(data, other), data, keys=[key.public], required=False)


def test_an_altered_manifest_is_refused(key):
    data = described()
    with pytest.raises(WeightsError, match="not the one that was registered"):
        check_version(record(data, key), data + b" ", keys=[key.public], required=True)


@pytest.mark.parametrize("field", ["name", "version"])
def test_a_signed_manifest_under_another_name_is_refused(key, field):
    """Else whoever writes the registry could serve an older version as the new one."""
    data = described()
    model = record(data, key, **{field: "other"})
    with pytest.raises(WeightsError, match="is that of m@v1"):
        check_version(model, data, keys=[key.public], required=True)


PATHS = ["../x.json", "/etc/passwd.txt", "a/../../x.json", "a\\b.json", "x.py", "x.bin"]


@pytest.mark.parametrize("path", [*PATHS, "manifest.json", "./x.json", ""])
@pytest.mark.parametrize("lora", [False, True])
def test_paths_that_leave_the_folder_are_refused_though_signed(key, path, lora):
    files = [{"path": path, "sha256": "a" * 64, "size_bytes": 3}]
    data = described(files=files)
    if lora:
        data = json.dumps(
            {"kind": "lora", "base": "w", "name": "m", "version": "v1", "files": files}
        ).encode()
    kind = reg.MODEL_KIND_LORA if lora else reg.MODEL_KIND_MODEL
    with pytest.raises(WeightsError, match=r"files\.0\.path"):
        check_version(record(data, key, kind=kind), data, keys=[key.public], required=True)


def test_a_digest_has_one_size(key):
    files = [
        {"path": f"{name}.json", "sha256": "a" * 64, "size_bytes": size}
        for name, size in (("a", 1), ("b", 2))
    ]
    data = described(files=files)
    with pytest.raises(WeightsError, match="another size"):
        check_version(record(data, key), data, keys=[key.public], required=True)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000])
def test_what_is_no_manifest_is_refused(key, data):
    with pytest.raises(WeightsError, match="m@v1"):
        check_version(record(data, key), data, keys=[key.public], required=True)


def test_a_key_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"registry\.trusted_keys: .*absent"):
        read_trusted_keys([tmp_path / "absent"])
