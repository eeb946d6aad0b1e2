"""A package that is missing is named, with what wanted it and the command that installs it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from handmesh.errors import MissingPackageError
from handmesh.system import extras
from handmesh.system.extras import extra, install_command

ROOT = Path(__file__).resolve().parents[2]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError) as raised, extra("train", "`handmesh train`"):
        import torch.nn  # noqa: F401
    assert str(raised.value) == "`handmesh train` needs torch, which is not installed: " + install_command("train")


def test_the_advice_works_where_it_is_given(monkeypatch, tmp_path):
    """From a source tree nothing of this name need be on an index; from a wheel there is no source tree."""
    assert install_command("train") == 'pip install -e ".[train]"'
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "handmesh" / "system" / "extras.py"))
    assert install_command("train") == 'pip install "handmesh[train]"'


def test_extras_that_are_advised_can_be_installed():
    """And no message advises a command of its own making."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [file for folder in ("handmesh", "server") for file in (ROOT / folder).rglob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in sources}
    advising = re.compile(r"""\b(?:install_command|extra)\(["'](\w+)""")
    advised = {name for text in texts.values() for name in advising.findall(text)}
    assert {"train", "detect", "openvino", "heic"} <= advised <= set(project["optional-dependencies"])
    others = [file.name for file, text in texts.items() if re.search(r"pip install .{0,4}handmesh", text)]
    assert others == ["extras.py"]


def test_pages_advise_what_works_from_a_checkout():
    """As the first of them does: nothing of this name need be on an index."""
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert [page.name for page in pages if "handmesh[" in page.read_text(encoding="utf-8")] == []


def test_a_module_of_ours_that_is_missing_is_our_slip():
    with pytest.raises(ModuleNotFoundError), extra("train", "`handmesh train`"):
        import handmesh.no_such_module  # noqa: F401
