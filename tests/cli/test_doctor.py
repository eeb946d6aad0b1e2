"""The doctor: it always finishes, and what it says is true."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata

import numpy as np
import pytest
import torch

from handmesh import doctor
from handmesh.doctor import OPTIONAL_PACKAGES, PACKAGES, Finding, examine
from handmesh.hand import HandOutput, builtin_hand
from handmesh.runtime.engine import open_engine
from handmesh.system.paths import temporary_folder


@pytest.fixture
def installed(monkeypatch, model_file):
    """An installation whose bundled model is a tiny one."""
    monkeypatch.setattr(doctor, "bundled_model_path", lambda: model_file)
    monkeypatch.setattr(doctor, "open_engine", lambda **_: open_engine(model_file))
    return model_file


def findings() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_a_sound_installation_is_found_sound(installed):
    found = findings()
    assert not [finding for finding in found.values() if finding.good is False]
    assert found["torch"].fact == torch.__version__
    assert found["Python"].fact.startswith(platform.python_version())
    assert builtin_hand().sha256[:12] in found["hand 'builtin'"].fact
    assert hashlib.sha256(installed.read_bytes()).hexdigest()[:12] in found["bundled model"].fact
    assert "64 px crop" in found["inference"].fact
    assert set(PACKAGES) | set(OPTIONAL_PACKAGES) <= set(found)


def test_what_is_missing_is_a_finding_and_not_an_error(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "OPTIONAL_PACKAGES", {"nor-this-one": "pip install it"})
    monkeypatch.setattr(doctor, "bundled_model_path", lambda: tmp_path / "absent.safetensors")
    monkeypatch.setattr(doctor, "open_engine", lambda **_: open_engine(tmp_path / "absent.safetensors"))
    found = findings()
    assert found["no-such-package"].good is False
    assert found["nor-this-one"] == Finding("nor-this-one", "not installed (pip install it)", None)
    assert found["bundled model"].good is False
    assert "absent.safetensors" in found["inference"].fact


@pytest.mark.parametrize(("device", "said"), [("cpu", "CPU, "), ("mps", "MPS")])
def test_the_device_is_the_default_engines(device, said, installed, monkeypatch):
    """Apple's GPU was called a CPU."""
    monkeypatch.setattr(doctor, "best_device", lambda: device)
    assert findings()["device"].fact.startswith(said)


@pytest.mark.parametrize("owners", [["opencv-python-headless"], ["opencv-python", "opencv-contrib-python"], []])
def test_opencv_is_found_whichever_package_it_is_of(owners, installed, monkeypatch):
    """Where only the headless one was installed, as in the image, the doctor said: missing, install handmesh again."""
    real = metadata.version

    def version(name: str) -> str:
        if "opencv" not in name:
            return real(name)
        if name in owners:
            return "5.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    opencv = [finding for name, finding in findings().items() if "opencv" in name]
    assert [(finding.subject, finding.good) for finding in opencv] == (
        [(name, True) for name in owners] or [("opencv-python", False)]
    )


@pytest.mark.parametrize("damage", ["cut", "nonsense"])
def test_a_model_that_answers_nonsense_is_found(damage, installed, monkeypatch, tmp_path):
    if damage == "cut":
        path = tmp_path / "cut.safetensors"
        path.write_bytes(installed.read_bytes()[:1000])
        monkeypatch.setattr(doctor, "open_engine", lambda **_: open_engine(path))
    else:
        engine = open_engine(installed)

        class Broken:
            resolution, name = engine.resolution, engine.name

            def __call__(self, crops: np.ndarray) -> HandOutput:
                return engine(crops)._replace(betas=np.full((1, 10), np.nan))

        monkeypatch.setattr(doctor, "open_engine", lambda **_: Broken())
    found = findings()["inference"]
    assert found.good is False
    assert ("cut.safetensors" if damage == "cut" else "not finite") in found.fact


def test_processors_are_those_that_the_container_may_use(installed, monkeypatch):
    monkeypatch.setattr("handmesh.system.cpus.cgroup_cpus", lambda: 1.5)
    assert findings()["cpu"].fact.startswith("1 of ")


def test_a_folder_that_cannot_be_written_is_bad(installed, monkeypatch, tmp_path):
    """It was told, and marked ok."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "file"))
    found = findings()["folder for caches"]
    assert found.good is False
    assert f"{tmp_path / 'file'} cannot be written" in found.fact


@pytest.mark.parametrize("home", ["there", "missing"])
def test_only_what_stands_in_for_a_home_is_said_to_be_emptied(home, installed, monkeypatch, tmp_path):
    """A home among temporary files, as of a test or a build, was said to need another HOME."""
    for name in ("HANDMESH_CACHE_DIR", "HANDMESH_WEIGHTS_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if home == "missing":
        (tmp_path / "home").write_text("in the way")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    temporary_folder.cache_clear()
    said = [finding.fact for finding in examine() if "folder" in finding.subject]
    temporary_folder.cache_clear()
    assert said
    assert all(("which the system empties: set HOME" in fact) == (home == "missing") for fact in said)
