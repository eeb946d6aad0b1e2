"""The page's files, without a browser: what is sent, with which headers, and that nothing comes from elsewhere."""

from __future__ import annotations

import html.parser
import posixpath
import re
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from handmesh_server.stream import HAND, HEADER
from server_harness import running, settings

from handmesh.hand import JOINT_NAMES

STATIC = Path(str(files("handmesh_server") / "static"))
VIEWER = Path(str(files("handmesh") / "assets" / "viewer"))
FILES = {
    **{path.relative_to(STATIC).as_posix(): path for path in sorted(STATIC.rglob("*")) if path.is_file()},
    **{f"viewer/{path.name}": path for path in sorted(VIEWER.iterdir())},
}


@pytest.fixture(scope="module")
def server():
    with running(settings(token="correct-horse-battery-staple")) as one:
        yield one


class Links(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._in_code = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value)
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_code = False

    def handle_data(self, data):
        if self._in_code and data.strip():
            self.inline.append(data)


def test_the_page_is_open_and_strict(server):
    """Without a token, for there is nothing in it; and with a policy that lets nothing in from elsewhere."""
    response = server.client.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["permissions-policy"].startswith("camera=(self)")
    assert response.headers["x-content-type-options"] == "nosniff"
    links = Links(response.text)
    assert links.inline == []
    for address in links.addresses:
        assert address.startswith(("static/", "#")) or address == "docs", address
        if address.startswith("static/"):
            assert server.client.get(f"/{address}").status_code == 200


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_sent_and_asks_for_nothing_elsewhere(server, name):
    response = server.client.get(f"/static/{name}")
    assert response.status_code == 200
    assert response.content == FILES[name].read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"'`]+", response.text) == []
    for module in re.findall(r'from "(.*?)"', response.text):
        assert posixpath.normpath(posixpath.join(posixpath.dirname(name), module)) in FILES
    again = server.client.get(f"/static/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "../settings.py", "..%2fsettings.py", "%2e%2e/app.py", "/etc/passwd", "js", "samples/../x"],
)
def test_no_name_leads_elsewhere(server, name):
    assert server.client.get(f"/static/{name}").status_code == 404


def test_what_python_knows_better(server):
    facts = server.client.get("/static/page.json").json()
    assert {"palm", "left_gun"} <= {sample["name"] for sample in facts["samples"]}
    for sample in facts["samples"]:
        response = server.client.get(f"/{sample['src']}")
        assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
    assert len(facts["joint_colors"]) == len(JOINT_NAMES)
    for name in ("max_body_bytes", "deadline_seconds"):
        assert facts[name] == getattr(server.service.settings, name)


def test_the_page_reads_the_bytes_that_are_written():
    """Its decoder names the sizes of ours."""
    decoder = (STATIC / "js" / "wire.js").read_text(encoding="utf-8")
    assert f"HEADER_BYTES = {HEADER.size};" in decoder
    assert f"HAND_BYTES = {HAND.size};" in decoder


@pytest.mark.slow
def test_the_wheel_has_the_page(tmp_path):
    """Files that are no modules are easily forgotten when a package is built."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel: pip install hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=root, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {STATIC: STATIC.parents[1], VIEWER: VIEWER.parents[2]}
    for folder, package in packages.items():
        wanted = {path.relative_to(package).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert wanted <= set(names)
    assert {"handmesh/assets/samples/palm.jpg", "handmesh/assets/hands.html"} <= set(names)


def test_the_page_has_its_heading_whatever_it_shows():
    """The only <h1> was in the welcome, which goes when a photo is shown."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert page.count("<h1") == 1
    assert page.index("<header") < page.index("<h1") < page.index("</header>")
