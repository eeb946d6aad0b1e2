"""Folders of the user's: the usual ones, and what happens in a container without a home."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from handmesh.errors import ConfigError
from handmesh.hand.mano_file import mano_directory
from handmesh.model.pretrained import weights_folder
from handmesh.system import paths
from handmesh.system.paths import temporary_folder, user_cache_folder, user_data_folder


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    for name in ("HANDMESH_CACHE_DIR", "HANDMESH_WEIGHTS_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary_folder.cache_clear()
    yield
    temporary_folder.cache_clear()


def no_home(monkeypatch):
    """An unknown user whose HOME is not set."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


@pytest.mark.parametrize(
    ("platform", "variable", "cache", "data"),
    [
        ("linux", "HOME", ".cache/handmesh", ".local/share/handmesh"),
        ("darwin", "HOME", "Library/Caches/handmesh", "Library/Application Support/handmesh"),
        ("win32", "LOCALAPPDATA", "handmesh/cache", "handmesh"),
    ],
)
def test_folders_are_where_each_system_wants_them(platform, variable, cache, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert (user_cache_folder(), user_data_folder()) == (tmp_path / cache, tmp_path / data)
    assert list(tmp_path.iterdir()) == []


def test_the_usual_variables_move_them(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "b"))
    assert (user_cache_folder(), user_data_folder()) == (tmp_path / "a" / "handmesh", tmp_path / "b" / "handmesh")
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "c"))
    assert user_cache_folder() == tmp_path / "c"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_without_a_home_they_are_among_temporary_files(platform, tmp_path, monkeypatch):
    no_home(monkeypatch)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    own = tmp_path / f"handmesh-{os.getuid()}"
    assert (user_cache_folder(), user_data_folder(), weights_folder()) == (
        own / "cache",
        own / "data",
        own / "data/weights",
    )
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_written_is_as_good_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # nothing can be made below it, by root neither
    assert user_cache_folder().parent == user_data_folder().parent == tmp_path / f"handmesh-{os.getuid()}"


def test_what_was_added_is_found_in_a_home_that_became_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    added = tmp_path / "home/.local/share/handmesh"
    added.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(tmp_path / "home"))
    assert user_data_folder() == added
    assert user_cache_folder() == tmp_path / f"handmesh-{os.getuid()}" / "cache"


@pytest.mark.parametrize("trap", ["link", "open to all"])
def test_a_folder_that_somebody_else_prepared_is_not_used(trap, tmp_path, monkeypatch):
    """Machine code and models are read from there: a name that can be guessed must not be a door."""
    no_home(monkeypatch)
    own = tmp_path / f"handmesh-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    if trap == "link":
        own.symlink_to(tmp_path / "theirs")
    else:
        own.mkdir()
        own.chmod(0o777)
    folder = temporary_folder()
    assert folder != own
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert temporary_folder() == folder, "the same at every call"


def test_a_tilde_without_a_home_is_refused_by_name(monkeypatch):
    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    for variable, folder in (
        ("HANDMESH_CACHE_DIR", user_cache_folder),
        ("HANDMESH_WEIGHTS_DIR", weights_folder),
        ("HANDMESH_MANO_DIR", mano_directory),
    ):
        monkeypatch.setenv(variable, "~/there")
        with pytest.raises(ConfigError, match=rf"{variable}=~/there: there is no home folder for ~"):
            folder()


def test_no_place_at_all_is_one_clear_sentence(monkeypatch):
    no_home(monkeypatch)

    def fail():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(paths.tempfile, "gettempdir", fail)
    with pytest.raises(ConfigError, match=r"no home, and none for temporary files .* Set HOME or TMPDIR"):
        user_cache_folder()
