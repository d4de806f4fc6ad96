from __future__ import annotations

import json

import pytest

from reelkit.files import write_atomic, write_json_atomic


def test_a_reader_sees_the_old_or_the_new(tmp_path):
    target = tmp_path / "a.json"
    write_json_atomic(target, {"n": 1})
    write_json_atomic(target, {"n": 2})
    assert json.loads(target.read_text()) == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    target = tmp_path / "a"
    write_atomic(target, b"old")
    with pytest.raises(TypeError):
        write_atomic(target, "text, not bytes")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
