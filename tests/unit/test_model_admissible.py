"""What may be in a model's folder: no name hides a pickle, a program or stray bytes."""

import json
import pickle
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.reelctl.sources import admissible
from control_plane.reelctl.sources.admissible import Verdict, header_length, header_problem, judge
from node_agent.manifest import ALLOWED_SUFFIXES
from tests.support.weights import safetensors


def problem(data: bytes, path: str = "model.safetensors") -> str:
    head = data[: admissible.HEAD_BYTES]
    found = admissible.start_problem(path, head)
    if found or not path.endswith(".safetensors"):
        return found
    length = header_length(head, len(data))
    if length is None:
        return "is no safetensors file"
    return header_problem(data[8 : 8 + length], len(data) - 8 - length)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_reelctl_and_the_node_agent_take_the_same_kinds():
    assert admissible.ACCEPTED_SUFFIXES == ALLOWED_SUFFIXES
    assert not admissible.ACCEPTED_SUFFIXES & (admissible.PICKLES | admissible.CODE)


@pytest.mark.parametrize("suffix", sorted(admissible.PICKLES | admissible.CODE))
def test_pickles_and_code_are_refused_by_their_names(suffix):
    for path in (f"vae/model{suffix}", f"model{suffix.upper()}"):
        verdict, reason = judge(path)
        assert verdict is Verdict.REFUSED
        assert suffix in reason


@pytest.mark.parametrize(
    "path", ["README.md", ".gitattributes", ".cache/x.json", "a.png", "LICENSE"]
)
def test_what_is_no_part_of_a_model_is_left_out(path):
    assert judge(path) == (Verdict.LEFT_OUT, "")


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "a/../../x", "a//b", "./a", "", "a\\b", "a\nb"]
)
def test_paths_that_leave_the_folder_are_told(path):
    assert admissible.path_problem(path)


@pytest.mark.parametrize(
    "data",
    [pickle.dumps({"weights": [1.0] * 100}, protocol=protocol) for protocol in range(2, 6)]
    + [b"PK\x03\x04" + bytes(100), b"\x7fELF" + bytes(100), b"#!/bin/sh\nrm -r x", b"", b"short"],
)
def test_a_renamed_pickle_or_program_is_no_safetensors_file(data):
    assert problem(data)


@pytest.mark.parametrize("path", ["tokenizer.json", "spiece.model", "merges.txt"])
def test_nor_is_it_any_other_accepted_file(path):
    assert problem(pickle.dumps([1]), path) == "begins as a pickle does"
    assert problem(b"PK\x03\x04....", path)
    assert problem(b"{}", path) == ""


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": TENSOR}, bytes(9)),
        ({"a": TENSOR}, bytes(7)),
        ({"a": TENSOR, "b": TENSOR}, bytes(16)),
        ({"a": {**TENSOR, "data_offsets": [4, 12]}}, bytes(12)),
        ({"a": {**TENSOR, "dtype": "OBJECT"}}, bytes(8)),
        ({"a": {**TENSOR, "dtype": ["F32"]}}, bytes(8)),
        ({"a": {**TENSOR, "shape": [-2]}}, bytes(8)),
        ({"a": {**TENSOR, "shape": 2}}, bytes(8)),
        ({"a": {**TENSOR, "code": "x"}}, bytes(8)),
        ({"a": 1}, b""),
        ([], b""),
        ({}, b"hidden"),
    ],
)
def test_a_header_describes_exactly_the_bytes_after_it(header, data):
    assert problem(with_header(header, data))


def test_real_headers_pass():
    assert problem(safetensors(1000, 1)) == ""
    assert problem(with_header({"__metadata__": {"format": "pt"}, "a": TENSOR}, bytes(8))) == ""
    assert problem(with_header({})) == ""


@given(st.binary(max_size=300))
def test_no_bytes_break_the_check(data):
    assert isinstance(problem(data), str)


@given(st.text(max_size=60))
def test_what_is_taken_has_a_plain_path_of_an_accepted_kind(path):
    if judge(path)[0] is Verdict.TAKEN:
        assert PurePosixPath(path).suffix.lower() in admissible.ACCEPTED_SUFFIXES
