"""How commands present themselves: in 80 columns, with former names of options, and what `handmesh` alone says."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from handmesh.cli import FIRST_STEPS, app
from handmesh.cli.help import RENAMED_OPTIONS


def commands(node, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, command in getattr(node, "commands", {}).items():
        yield from commands(command, (*words, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 60])
def test_help_fits_the_terminal_and_breaks_where_it_must(words, columns):
    """Docstrings are 120 wide: their line breaks once stood in the middle of sentences that were wrapped at 80."""
    shown = CliRunner().invoke(app, [*words, "-h"], terminal_width=columns)
    assert shown.exit_code == 0
    assert shown.output == CliRunner().invoke(app, [*words, "--help"], terminal_width=columns).output
    lines = shown.output.splitlines()
    assert not re.search(r"<\w+(\[\w+\])?>", shown.output), "a type of Python's"
    assert not [line for line in lines if len(line) > columns and " " in line.strip()[: columns - 6]]
    prose = re.split("Example|Arguments:|Options:", shown.output)[0].splitlines()
    for line, following in itertools.pairwise(prose):  # a line ends only where the next word had no room
        if line.startswith("  ") and following.startswith("  ") and line.strip() and following.strip():
            assert len(line) + 1 + len(following.split()[0]) > columns - 2, (line, following)


def test_examples_in_help_can_be_pasted():
    for words in COMMANDS:
        shown = CliRunner().invoke(app, [*words, "-h"], terminal_width=80).output
        assert not [line for line in shown.splitlines() if line.count('"') % 2], "a break between quotes"
        shown = shown.replace("\\\n", " ")
        for example in re.findall(r"^ +(handmesh .*)$", shown.partition("Options:")[0], re.MULTILINE):
            _, *found = shlex.split(example.partition("&&")[0])
            node = typer.main.get_command(app)
            while found and hasattr(node, "commands"):
                node = node.commands[found.pop(0)]
            known = {option for parameter in node.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in found if word.startswith("--")} <= known, example


def test_the_command_alone_says_what_most_people_come_for():
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    assert all(command in shown.output for command, _ in FIRST_STEPS)
    assert len(shown.output.splitlines()) == len(FIRST_STEPS) + 2


def test_former_names_of_options_still_work_and_are_not_shown(tmp_path):
    for former in ("--limit", "--count"):
        refused = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path), former, "0"])
        assert refused.exit_code == 2
        assert "--count" in refused.output
    shown = CliRunner().invoke(app, ["evaluate", "-h"]).output
    assert not [name for name in RENAMED_OPTIONS["evaluate"] if name in shown]
    by_name = {words[-1]: words for words in COMMANDS if words}
    for name, renamed in RENAMED_OPTIONS.items():
        node = typer.main.get_command(app)
        for word in by_name[name]:
            node = node.commands[word]
        known = {option for parameter in node.params for option in parameter.opts}
        assert set(renamed.values()) <= known
        assert not set(renamed) & known


def test_an_option_that_took_a_file_and_is_a_flag_now_still_takes_one():
    for former in (["--json", "nowhere/x.json"], ["--json=nowhere/x.json"]):
        assert "--out nowhere/x.json: there is no folder" in str(CliRunner().invoke(app, ["bench", *former]).exception)
    refused = CliRunner().invoke(app, ["bench", "--json", "--batch", "1,none"])
    assert "wanted numbers of crops" in str(refused.exception), "as a flag"
    assert "wanted numbers of crops" in str(CliRunner().invoke(app, ["bench", "--batch", "1,none", "--json"]).exception)


def test_words_after_two_dashes_are_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["data", "check", "--", "--images"])
    assert "--images" in str(refused.exception)


def test_a_shell_can_complete():
    for begun, wanted in (
        ("handmesh pre", "predict"),
        ("handmesh predict photo.jpg --ha", "--hand"),
        ("handmesh predict photo.jpg --hand le", "left"),
        ("handmesh predict photo.jpg --format glb,h", "glb,html"),
        ("handmesh predict photo.jpg --search th", "thorough"),
        ("handmesh train synthetic_t8_", "synthetic_t8_gpu"),
        ("handmesh export --format open", "openvino"),
    ):
        count = str(len(begun.split()) - 1)
        environment = {"_HANDMESH_COMPLETE": "complete_bash", "COMP_WORDS": begun, "COMP_CWORD": count}
        answer = CliRunner().invoke(app, [], prog_name="handmesh", env=environment)
        assert wanted in answer.output.split(), begun


@pytest.mark.parametrize(
    "arguments",
    [
        "predict photo.jpg --threads 100000",
        "serve --threads 100000",
        "video clip --threads 100000",
        "evaluate --data . --threads 100000",
        "synth --out hands --workers 100000",
        "video clip --fps 1e300",
        "synth --sheet sheet.png --count 1000000000",
        "train smoke --set threads=100000",
        "train smoke --set loader_workers=100000",
    ],
)
def test_a_slip_in_a_number_is_no_load_on_the_machine(arguments, tmp_path, monkeypatch):
    """A hundred thousand threads were started, or a billion pictures begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    result = CliRunner().invoke(app, arguments.split())
    said = result.output + str(result.exception)
    assert result.exit_code != 0
    assert re.search(r"less than or equal to 10(00|24)|1<=x<=10(00|24)|the limit is 64,000,000", said), said
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
