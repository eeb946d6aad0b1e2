"""Comments beside a class's fields, as documentation of these fields: for the settings page, and for mkdocstrings."""

from __future__ import annotations

import ast
import io
import tokenize
from typing import Any

import griffe


def field_comments(source: str) -> dict[tuple[str, str], str]:
    """For each (class, field), the comment on its lines, after whole lines of comment above it."""
    comments: dict[int, tuple[str, bool]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# "), not token.line[: token.start[1]].strip()
    found = {}
    for section in ast.parse(source).body:
        for field in section.body if isinstance(section, ast.ClassDef) else ():
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            above = field.lineno
            while comments.get(above - 1, ("", False))[1]:
                above -= 1
            lines = range(above, (field.end_lineno or field.lineno) + 1)
            found[section.name, field.target.id] = " ".join(comments[line][0] for line in lines if line in comments)
    return found


class FieldComments(griffe.Extension):
    """Gives fields without a docstring the comment beside them, and leaves out what `__init__` sets without a word."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        source = "\n".join(mod.lines)
        comments = field_comments(source) if source.strip() else {}
        for section in mod.classes.values():
            start = section.members.get("__init__")
            for name, field in list(section.members.items()):
                if not isinstance(field, griffe.Attribute) or field.docstring is not None:
                    continue
                if text := comments.get((section.name, name)):
                    field.docstring = griffe.Docstring(text, parent=field)
                elif start is not None and start.lineno <= (field.lineno or 0) <= (start.endlineno or 0):
                    del section.members[name]
