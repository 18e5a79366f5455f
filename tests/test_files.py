"""Files are written whole or not at all."""

import json
import os
import stat

import pytest

from mmtlib import files


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_json_are_written_and_folders_made(tmp_path):
    files.write_bytes(tmp_path / "a/b/c.bin", b"\x00\xff")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"\x00\xff"
    files.write_text(tmp_path / "t.txt", "Größe\n")
    assert (tmp_path / "t.txt").read_bytes() == "Größe\n".encode()
    files.write_json(tmp_path / "j.json", {"b": 1, "a": [1.5, None]})
    text = (tmp_path / "j.json").read_text()
    assert json.loads(text) == {"a": [1.5, None], "b": 1}
    assert text.endswith("}\n")
    assert text.index('"a"') < text.index('"b"'), "keys in order, or Git would show changes that are none"
    assert names(tmp_path) == ["a", "j.json", "t.txt"]


def test_an_existing_file_is_replaced_and_readable_by_others(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old and longer")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["replace", "chmod"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise error("no space left")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.json"]


def test_a_failing_write_leaves_no_new_file(tmp_path):
    with pytest.raises(TypeError):
        files.write_bytes(tmp_path / "x", "text, not bytes")
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "y", {"a": object()})
    assert names(tmp_path) == []


def test_a_reader_never_sees_a_half_written_file(tmp_path, monkeypatch):
    """At the moment of the rename the new content is complete beside the old one."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append((open(source, "rb").read(), path.read_bytes(), os.path.dirname(source)))  # noqa: SIM115
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    files.write_bytes(path, b"new" * 1000)
    assert seen == [(b"new" * 1000, b"old", str(tmp_path))], "a rename is atomic only within one folder's disk"


def test_digest_depends_on_the_value_and_not_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1})
    different = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [1], b"1", b"2"]
    assert len({files.digest(value) for value in different}) == len(different)
    assert files.digest(b"") == "e3b0c44298fc1c14"  # sha256 of nothing, as everywhere
