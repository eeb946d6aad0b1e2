"""Files are whole or not there, whatever happens while they are written."""

import os
from pathlib import Path

import pytest

from handmesh.errors import ExportError
from handmesh.system.atomic import write_atomically, written_atomically


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "answer.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    if os.name == "posix":
        plain = tmp_path / "plain"
        plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode
        plain.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ExportError, match=r"answer\.bin: No space left"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(ExportError, match="no folder"):
        write_atomically(tmp_path / "missing" / "a.bin", b"")
    for folder in (tmp_path, ".", "/"):  # of which the last two have no name
        with pytest.raises(ExportError, match="a folder or a device"):
            write_atomically(folder, b"")
    with pytest.raises(ExportError, match="a folder or a device"):  # never replaces a device by a file
        write_atomically("/dev/null", b"")
    assert not Path("/dev/null").is_file()
    with pytest.raises(ExportError, match="Cannot write"):
        write_atomically(tmp_path / ("x" * 300), b"")


@pytest.mark.parametrize("name", ["x" * 255, "手" * 85, "🖐" * 60 + ".jpg", "\udce9t\udce9.jpg"])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path, name):
    """The temporary name was cut by characters, so 60 characters of four bytes were one name too long."""
    write_atomically(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with written_atomically(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with written_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
