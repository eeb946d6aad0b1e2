"""What is published: built, checked as an index checks it, and its contents listed; and which version it says it is."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MAX_MEGABYTES = 20  # of a file: an index refuses 100

for package in ("hatchling", "hatch_vcs", "hatch_fancy_pypi_readme", "twine"):
    pytest.importorskip(package, reason=f'{package} is not installed: pip install -e ".[test]"')


def run(*command: str, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SETUPTOOLS_SCM")}
    done = subprocess.run(
        command, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the sdist of these very files."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def metadata(built) -> Message:
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def sources(folder: str) -> set[str]:
    """All files of a folder, by their names in it, but those that git ignores."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        shown = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT / folder)
        return {name for name in shown.split("\0") if name and (ROOT / folder / name).is_file()}
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".nbi", ".nbc", ".pyc")
    }


def test_an_index_takes_both(built):
    shown = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built), cwd=ROOT, NO_COLOR="1")
    assert shown.count("PASSED") == 2
    assert all(file.stat().st_size < 1e6 * MAX_MEGABYTES for file in built)


def test_the_wheel_holds_the_packages_their_settings_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
        commands = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    wanted = {f"handmesh/{name}" for name in sources("handmesh")}
    wanted |= {f"handmesh/configs/{name}" for name in sources("configs")}
    wanted |= {f"handmesh_server/{name}" for name in sources("server/handmesh_server")}
    assert names == wanted
    assert {"handmesh/py.typed", "handmesh_server/py.typed", "handmesh/assets/handmesh_t8.onnx"} <= names
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert "handmesh = handmesh.__main__:main" in commands


def test_the_sdist_holds_what_tests_and_readers_need_and_no_licensed_file(built):
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    for folder in ("handmesh", "server", "configs", "tests", "benchmarks", "docs"):
        assert {f"{folder}/{name}" for name in sources(folder)} <= names, folder
    texts = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "RELEASING.md"}
    assert texts | {"CITATION.cff", "LICENSE", "pyproject.toml", "PKG-INFO", ".ci/run", ".dockerignore"} <= names
    assert {name for name in names if name.startswith("mano_assets/")} == {
        "mano_assets/README.md",
        "mano_assets/.gitignore",
    }
    assert not [name for name in names if re.search(r"MANO_(LEFT|RIGHT)|\.pyc$|\.git/", name)]


def test_the_long_description_leads_nowhere_that_is_not_there(metadata):
    """The README's own pages and pictures are in the repository; on an index their names lead nowhere."""
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "handmesh.load_predictor()" in text
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert all(target.startswith(("https://", "#")) for target in targets), targets
    assert not re.search(r"<img|<a |!\[", text)
    # Nor do its commands: who reads this has no checkout.
    assert set(re.findall(r"pip install [^`\s]+", text)) == {"pip install handmesh", 'pip install "handmesh[train]"'}
    assert not re.search(r"\babove\b|pytest|build_site|## The documents", text)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"```python\n.*?```", readme, re.DOTALL)) <= set(
        re.findall(r"```python\n.*?```", text, re.DOTALL)
    )


def test_the_metadata_says_what_it_is(metadata):
    assert (metadata["Name"], metadata["License-Expression"]) == ("handmesh", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert all(re.fullmatch(r"[\w ]+, https://\S+", url) for url in metadata.get_all("Project-URL"))
    assert len(metadata.get_all("Classifier")) >= 15
    extras = set(metadata.get_all("Provides-Extra"))
    assert {"train", "mano", "detect", "openvino", "coreml", "ray", "heic", "test"} <= extras
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in needed if re.match(r"torch\b|onnx\b|mediapipe", line)]


# ------------------------------------------------------------------------------------------------------- the version


@pytest.fixture
def checkout(tmp_path) -> Path:
    """As much of the source tree as its version is made of, without history."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def version(folder: Path, **variables: str) -> str:
    return run(sys.executable, "-m", "hatchling", "version", cwd=folder, **variables).strip()


def git(folder: Path, *arguments: str) -> None:
    run(
        "git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments,
        cwd=folder, GIT_CONFIG_GLOBAL=os.devnull,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_versions_come_from_tags_and_a_checkout_without_any_has_one(checkout):
    assert version(checkout) == "0.0", "a copy that is no checkout"
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", version(checkout))
    git(checkout, "tag", "v1.4.0")
    assert version(checkout) == "1.4.0"
    git(checkout, "commit", "-qm", "more", "--allow-empty")
    assert re.fullmatch(r"1\.4\.1\.dev1\+g[0-9a-f]+", version(checkout))


def test_an_unpacked_sdist_keeps_its_version(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        wanted = [one for one in archive.getmembers() if one.name.count("/") == 1 and one.isfile()]
        folder = tmp_path / Path(wanted[0].name).parent
        folder.mkdir()
        for one in wanted:  # not by `extractall`, whose safe way Python 3.11 has from 3.11.4 on
            (tmp_path / one.name).write_bytes(archive.extractfile(one).read())
    assert version(folder) == folder.name.removeprefix("handmesh-")


def test_a_copy_can_be_told_its_version(checkout):
    """As the Dockerfile does, whose context has no history; an empty word is none."""
    assert version(checkout, SETUPTOOLS_SCM_PRETEND_VERSION_FOR_HANDMESH="2.0.1") == "2.0.1"
    assert version(checkout, SETUPTOOLS_SCM_PRETEND_VERSION_FOR_HANDMESH="") == "0.0"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_image_is_told_a_version_between_releases(checkout):
    """The Dockerfile said `git describe --tags`, whose v1.4.0-1-gabc is no version: the build ended in a traceback."""
    dockerfile = (ROOT / "server" / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r'--build-arg VERSION="\$\((.+?)\)"', dockerfile)
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    git(checkout, "tag", "v1.4.0")
    git(checkout, "commit", "-qm", "more", "--allow-empty")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    told = run("sh", "-c", command, cwd=checkout, PATH=path).strip()
    shutil.rmtree(checkout / ".git")
    assert version(checkout, SETUPTOOLS_SCM_PRETEND_VERSION_FOR_HANDMESH=told) == told
    assert told.startswith("1.4.1.dev1+g")


# ----------------------------------------------------------------------------------------------------- for contributors


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_what_a_page_for_contributors_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#]*)\)", text) if not target.startswith("https://")]
    quoted = re.findall(r"`((?:\.ci|docs|handmesh|tests|server|mano_assets)/[\w./]+|[A-Z]+\.md|CITATION\.cff)`", text)
    assert [name for name in {*linked, *quoted} if not (ROOT / name).exists()] == []


def test_the_citation_can_be_read_by_machines():
    """The fields that the format demands, and a licence as the package names it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])
    assert citation["license"] == "Apache-2.0"
    for work in citation["references"]:
        assert {"type", "title", "authors"} <= work.keys()


def test_forms_for_issues_are_forms():
    """GitHub shows no form at all where one of its fields lacks a label or a name is given twice."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert all(field["attributes"]["label"] for field in form["body"])
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
