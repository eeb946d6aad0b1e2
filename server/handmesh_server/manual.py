"""The manual page at /docs, made from the OpenAPI document: plain HTML, no scripts, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from textwrap import dedent
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid #8886; border-radius: .5rem; font-size: .85rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; padding-top: .6rem; border-top: 1px solid #8886; }
h2 span { font: 600 .8rem ui-monospace, monospace; border: 1px solid; border-radius: .3rem; padding: .1rem .4rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; margin: .6rem 0; }
dt { font-family: ui-monospace, monospace; font-size: .9rem; } dd { margin: 0; }
"""


def manual_page(openapi: Mapping[str, Any], address: str, own_address: str) -> str:
    """HTML of an OpenAPI document. Where its example says `address`, the page says `own_address`."""
    title = f"{openapi['info']['title']} {openapi['info']['version']}"
    prose, example, rest = _split(openapi["info"].get("description", ""))
    sections = [
        _operation(method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    return dedent("""\
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><title>{title}</title>
        <meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>
        <h1>{title}</h1><p>{prose}</p><pre>{example}</pre><p>{rest}</p>
        <p>For programs: <a href="openapi.json">openapi.json</a></p>
        {sections}
        </body></html>
        """).format(
        title=escape(title),
        style=_STYLE,
        prose=escape(prose),
        example=escape(example.replace(address, own_address)),
        rest=escape(rest),
        sections="\n".join(sections),
    )


def _split(description: str) -> tuple[str, str, str]:
    """Text, the indented example in its middle, and text."""
    blocks = description.strip().split("\n\n")
    examples = [index for index, block in enumerate(blocks) if block.startswith("    ")]
    at = examples[0] if examples else len(blocks)
    return "\n".join(blocks[:at]), "\n\n".join(map(dedent, blocks[at : at + 1])), "\n".join(blocks[at + 1 :])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    html = [
        f"<h2><span>{escape(method.upper())}</span> {escape(path)}</h2><p>{escape(operation.get('summary', ''))}</p>"
    ]
    body = operation.get("requestBody")
    if body:
        html.append(f"<p>{_text(body.get('description', ''))}</p>")
    rows = [(f"?{one['name']}", one.get("description", "")) for one in operation.get("parameters", [])]
    for status, response in operation.get("responses", {}).items():
        if status == "default":
            continue
        types = ", ".join(response.get("content", {}))
        rows.append((status, f"{response.get('description', '')} {f'({types})' if types else ''}"))
    html.append("<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{_text(text)}</dd>" for name, text in rows) + "</dl>")
    return "".join(html)


def _text(text: str) -> str:
    """HTML of text in which `code` is marked."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
