"""The documents as a site: every page has a place in it, the references are whole, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from handmesh.config.detector import DetectorConfig
from handmesh.config.settings import Settings
from handmesh.config.train import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None or importlib.util.find_spec("griffe") is None,
    reason='needs Zensical: pip install -e ".[docs]"',
)


def pages_of(entry):
    return [entry] if isinstance(entry, str) else [page for one in entry.values() for page in _listed(one)]


def _listed(value):
    return [value] if isinstance(value, str) else [page for entry in value for page in pages_of(entry)]


@pytest.fixture(scope="module")
def build_site():
    """docs/build_site.py as a module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import build_site as module
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


@needs_zensical
def test_it_builds_strictly_and_fetches_nothing(tmp_path):
    """Zensical ends with an error at a broken link or anchor, and mkdocstrings at a name that is not there."""
    command = [sys.executable, ROOT / "docs" / "build_site.py", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nav = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    wanted = {page.removesuffix(".md") + ".html" for entry in nav for page in pages_of(entry)}
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert built - {"404.html", "browser/index.html"} == wanted, (
        "pages without a place in the navigation, or places without one"
    )
    for page in built:
        text = (tmp_path / "site" / page).read_text(encoding="utf-8")
        for tag in ("<script src=", "<link rel=stylesheet href=", '<link rel="stylesheet" href=', "<img src="):
            assert f'{tag}"http' not in text, f"{page} fetches from elsewhere"
    serving = (tmp_path / "site" / "how_to" / "serving.html").read_text(encoding="utf-8")
    assert not re.search(r">\w+\.md</a>", serving), "a page is called by its title, not by its file"
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    assert "handmesh.load_predictor" in python
    assert "x0, y0, x1, y1 in pixels, around the keypoints" in python, "comments beside fields are their documentation"


@needs_zensical
def test_the_references_are_whole(build_site):
    """Every setting with a reason, every command, every path of the HTTP interface."""
    from handmesh.cli import app

    reasons = build_site.reasons_of_settings()
    without = [
        f"{name}.{key}"
        for kind in (TrainConfig, DetectorConfig)
        for name, section in build_site.sections("", kind)
        for key, field in section.model_fields.items()
        if not isinstance(field.default, Settings) and not build_site.reason(section, key, reasons)
    ]
    assert without == [], "settings without a comment that says what they are for (handmesh/config/)"
    commands = build_site.commands_page()
    assert all(
        f"## handmesh {command.name or command.callback.__name__}" in commands for command in app.registered_commands
    )
    http = build_site.http_page()
    assert "## POST /v1/hands" in http
    assert re.search(r"\| query .*\n.*\n(\| .*\n)*\| `min_score` \| [^|]*; default `0\.5` \|", http), "defaults"
    assert re.search(r"## GET /v1/videos/\{id\}\n+.*\n+\| path ", http), "what is no query is not called one"


@needs_zensical
def test_comments_beside_fields_are_read(build_site):
    source = (
        "class A:\n    # Above.\n    a: int = 1  # beside\n    b: int = (\n        2  # within\n    )\n    c: int = 3\n"
    )
    assert build_site.field_comments(source) == {("A", "a"): "Above. beside", ("A", "b"): "within", ("A", "c"): ""}
