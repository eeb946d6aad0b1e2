"""The documents as a site: every page has a place in it, the references are whole, and it builds without a warning."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium

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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: Zensical ends with an error at a broken link or anchor, mkdocstrings at a lost name."""
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, ROOT / "docs" / "build_site.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@needs_zensical
def test_it_has_every_page_and_fetches_nothing(site):
    nav = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    wanted = {page.removesuffix(".md") + ".html" for entry in nav for page in pages_of(entry)}
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert built - {"404.html", "browser/index.html"} == wanted, (
        "pages without a place in the navigation, or places without one"
    )
    for page in built:
        text = (site / page).read_text(encoding="utf-8")
        for tag in ("<script src=", "<link rel=stylesheet href=", '<link rel="stylesheet" href=', "<img src="):
            assert f'{tag}"http' not in text, f"{page} fetches from elsewhere"
        assert "\\|" not in re.sub("<[^>]+>", "", text.partition("<article")[2]), f"{page}: a bar in a table's code"
    examples = (site / "how_to" / "examples.html").read_text(encoding="utf-8")
    for example in (ROOT / "examples").glob("*.py"):
        assert f'href="#{example.name.replace(".", "")}"' in examples, "a row leads to the source"
    serving = (site / "how_to" / "serving.html").read_text(encoding="utf-8")
    assert not re.search(r">\w+\.md</a>", serving), "a page is called by its title, not by its file"
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "handmesh.load_predictor" in python
    assert "x0, y0, x1, y1 in pixels, around the keypoints" in python, "comments beside fields are their documentation"


@needs_zensical
def test_signatures_are_broken_into_lines(site):
    """In an environment of the extra `docs` alone they had no formatter, and one was a line of 3,400 px."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(one.startswith("ruff") for one in needed["docs"])
    pages = [site / "reference" / f"{name}.html" for name in ("python", "modules")]
    python = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = [re.sub("<[^>]+>", "", block) for block in re.findall(r"<pre.*?</pre>", python, re.DOTALL)]
    assert max(len(html.unescape(line)) for block in blocks for line in block.splitlines()) < 120


@needs_zensical
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_page_of_start_fits_one_screen(site, tmp_path):
    with chromium(tmp_path / "profile") as page:
        page.call("Emulation.setDeviceMetricsOverride", width=1440, height=900, deviceScaleFactor=1, mobile=False)
        for name in ("install", "first_mesh", "first_clip", "first_server"):
            page.open(f"file://{site}/start/{name}.html", ready="document.readyState === 'complete'")
            assert page.run("document.querySelector('article img').getBoundingClientRect().height") > 100
            assert page.run("document.querySelector('article').getBoundingClientRect().bottom") <= 900, name


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
    assert not any("FieldInfo" in page for page in build_site.settings_pages().values()), "types as people write them"
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
