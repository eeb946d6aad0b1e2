"""What the README and the pages of the documents say works as it stands there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from handmesh.cli import app
from handmesh.model.bundled import bundled_model_path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md")))]


def blocks_of(page, language=r"\w*"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands_of(page):
    """What its blocks say to type, without the explanation beside it."""
    lines = [
        line
        for block in blocks_of(page)
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()
        if re.match("handmesh [a-z]", line)
    ]
    return [re.split(r"\s{2,}|\s#", line)[0] for line in lines]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_blocks_fit_into_the_sites_column(page):
    """On a screen of 1280 px a line of more than 88 characters was read by scrolling, up to 131 there were."""
    assert [line for block in blocks_of(page) for line in block.splitlines() if len(line) > 88] == []


def test_it_opens_with_the_two_commands():
    install, check = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)[:2]
    assert install == "pip install -e . && handmesh demo"
    assert check == 'pip install -e ".[test]" && pytest'


@pytest.mark.skipif(not bundled_model_path().is_file(), reason="needs the bundled model: `handmesh train` makes one")
@pytest.mark.parametrize("page", ["README.md", "docs/start/first_mesh.md", "docs/how_to/pinch.md"])
def test_the_python_blocks_run(page, tmp_path, monkeypatch):
    """In order and in one namespace, as a reader would paste them, beside a photo of a hand."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "handmesh" / "assets" / "samples" / "palm.jpg", "photo.jpg")
    blocks = blocks_of(page, "python")
    assert blocks
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    if page == "README.md":
        assert (tmp_path / "hand.glb").stat().st_size > 10_000
        assert [hand.handedness for hand in namespace["hands"]] == ["left"]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_commands_and_options_exist(page):
    for command in commands_of(page):
        _, *words = shlex.split(command)
        node = typer.main.get_command(app)
        while words and hasattr(node, "commands"):
            assert words[0] in node.commands, f"`{command}`: there is no such command"
            node = node.commands[words.pop(0)]
        known = {option for parameter in node.params for option in parameter.opts + parameter.secondary_opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"`{command}`: there is no option {word}"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    """A benchmark was once renamed in every page and lost in the folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\b((?:benchmarks|configs|docs|handmesh|mano_assets|server|tests)/[\w/.-]+\.\w+)", text)
    assert [name for name in dict.fromkeys(named) if not (ROOT / name).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#:\s]+)\)", text) if not ((ROOT / page).parent / link).exists()]
    assert links == []
