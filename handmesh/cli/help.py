"""How commands present themselves: help that fits every terminal, and options that were renamed.

Plain text, as wide as the terminal: prose is wrapped anew, the lines of examples stay as they are.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

# Former names still work, and are not shown.
RENAMED_OPTIONS = {
    "bench": {"--processor-time": "--cpu-time"},
    "check": {"--images": "--count"},
    "evaluate": {"--limit": "--count", "--protocol": "--crop", "--workers": "--threads"},
    "show": {"--protocol": "--crop"},
    "video": {"--hands": "--max-hands"},
    "webcam": {"--hands": "--max-hands"},
}


# Flags now, that took a file: with one they are another option.
ONCE_TOOK_A_FILE = {"bench": {"--json": "--out"}}


class Command(TyperCommand):
    """A command of `handmesh`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes options by their former names, too."""
        names = RENAMED_OPTIONS.get(self.name or "", {})
        took = ONCE_TOOK_A_FILE.get(self.name or "", {})
        end = args.index("--") if "--" in args else len(args)
        words = [
            _renamed(word, took) if "=" in word or not (after or "-").startswith("-") else word
            for word, after in zip(args[:end], [*args[1:end], ""], strict=False)
        ]
        return super().parse_args(ctx, [*(_renamed(word, names) for word in words), *args[end:]])

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The docstring."""
        formatter.write("\n")
        text = "\n".join(f"  {line}".rstrip() for line in _reflowed(self.help or "", formatter.width - 2))
        formatter.write(f"{text.rstrip()}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments by their names alone: Python's types tell a user of a shell nothing."""
        before = len(formatter.buffer)
        super().format_options(ctx, formatter)
        formatter.buffer[before:] = [
            re.sub(r"^( +[^\s<>-]+)( <[\w\[\]]+>)", lambda found: found[1] + " " * len(found[2]), text)
            for text in formatter.buffer[before:]
        ]


class Group(TyperGroup):
    """`handmesh` itself, and each command that has commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """By what they are for, each with its whole first sentence."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            summary = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
            panel = getattr(command, "rich_help_panel", None)
            sections.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, summary))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _renamed(word: str, names: dict[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{names.get(option, option)}{equals}{value}"


def _reflowed(text: str, width: int) -> Iterator[str]:
    """A docstring's lines within a width: paragraphs, and indented lines, which are examples for a shell."""
    paragraph: list[str] = []
    for line in [*inspect.cleandoc(text).splitlines(), ""]:
        example = line.startswith(" ")
        if paragraph and (example or not line):
            yield from _wrapped(" ".join(paragraph), width)
            paragraph = []
        if example:
            yield " \\\n  ".join(_wrapped(line, width - 2, "      "))
        elif line:
            paragraph.append(line)
        else:
            yield ""


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """What stands in quotes stays on one line."""
    whole = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]
