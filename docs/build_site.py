"""Build the documents as a site:  python docs/build_site.py [FOLDER]     (default: site/)

Needs `pip install -e ".[docs]"` and no network. The pages are those of this folder, a few that live elsewhere, and four
references made from the code: settings, commands, HTTP, and the Python names. A broken link ends it.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "server")]

from field_comments import field_comments  # noqa: E402, beside this file

# Pages of the site that lie elsewhere in the repository, and where they go.
PAGES_ELSEWHERE = {
    "handmesh/assets/handmesh_t8.md": "explain/model_card.md",
    "handmesh/assets/handmesh_detector.md": "explain/detector_card.md",
    "examples/README.md": "how_to/examples.md",
    "mano_assets/README.md": "how_to/mano_files.md",
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "how_to/contributing.md",
}

APP = ROOT / "examples" / "browser" / "dist"  # the page that runs the model, where it was built


def main() -> None:
    if importlib.util.find_spec("zensical") is None:
        raise SystemExit('No zensical here, which builds the site: pip install -e ".[docs]"')
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        write_pages(stage / "docs")
        config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
        (stage / "zensical.toml").write_text(config.replace("REPOSITORY", ROOT.as_posix()), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"],
            cwd=stage,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(re.sub(r"\x1b\[[\d;]*m", "", run.stdout + run.stderr))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(stage / "site", target)
    if APP.is_dir():
        shutil.copytree(APP, target / "browser")
    print(f"Site: {target / 'index.html'}")


def write_pages(folder: Path) -> None:
    """All pages of the site, as Markdown, and their pictures."""
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    homes = {page: page.removeprefix("docs/") for page in pages} | PAGES_ELSEWHERE
    for page, home in homes.items():
        text = _with_site_links((ROOT / page).read_text(encoding="utf-8"), page, homes)
        _write(folder / home, text + examples_sources() if page == "examples/README.md" else text)
    _write(folder / "site.css", (ROOT / "docs" / "site.css").read_bytes())
    for picture in (ROOT / "docs" / "images").iterdir():
        _write(folder / "images" / picture.name, picture.read_bytes())
    for name, text in (
        *settings_pages().items(),
        ("commands", commands_page()),
        ("http", http_page()),
        *python_pages().items(),
    ):
        _write(folder / "reference" / f"{name}.md", text)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _with_site_links(text: str, page: str, homes: dict[str, str]) -> str:
    """Links between files of the repository as links between pages of the site; other files are named, not linked."""

    def link(match: re.Match[str]) -> str:
        label, address, anchor = match[1], match[2], match[3] or ""
        if not address or ":" in address:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), address))
        home = homes.get(target) or (target.removeprefix("docs/") if target.startswith("docs/images/") else None)
        if target == "examples/browser/index.html" and APP.is_dir():
            return f'<a href="{posixpath.relpath("browser/index.html", posixpath.dirname(homes[page]))}">{label}</a>'
        if target.startswith("examples/") and target.endswith(".py"):
            home, anchor = homes["examples/README.md"], "#" + posixpath.basename(target).replace(".py", "py")
        if home is not None:
            if label.endswith(".md"):  # a file in the repository, a page here
                label = (ROOT / target).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            return f"[{label}]({posixpath.relpath(home, posixpath.dirname(homes[page]) or '.')}{anchor})"
        if not (ROOT / target).exists():
            return match[0]  # generated, or broken: the build tells
        return f"`{target}`" if label in target else f"{label} (`{target}`)"

    text = re.sub(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, text)
    return text.replace('src="../docs/images/', 'src="../images/')


def examples_sources() -> str:
    """The examples themselves, each under its name."""
    sources = ((path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").glob("*.py")))
    return "".join(f"\n## {name}\n\n```python\n{source}```\n" for name, source in sources)


def settings_pages() -> dict[str, str]:
    """Every setting of a run: its name, type, default, limits, and the comment beside it. One page for each kind."""
    from handmesh.config.detector import DetectorConfig
    from handmesh.config.train import TrainConfig

    described: dict[type[BaseModel], str] = {}
    return {
        page: _settings_page(page, kind, title, described)
        for page, kind, title in (
            ("settings", TrainConfig, "Settings of a training run"),
            ("detector_settings", DetectorConfig, "Settings of the detector's training"),
        )
    }


def _settings_page(page: str, kind: type[BaseModel], title: str, described: dict[type[BaseModel], str]) -> str:
    """`described`: sections that stand on this page or another already, and links to them."""
    reasons = reasons_of_settings()
    parts = [
        f"# {title}",
        "A YAML file holds only what differs, `--set key=value` changes one: `--set optimizer.learning_rate=3e-4`. "
        "An unknown key is an error. Made from `handmesh/config/`.",
    ]
    for name, section in sections("", kind):
        parts.append(f"## {name or 'The run'}")
        if section in described:
            parts.append(f"As {described[section]}.")
            continue
        described[section] = f"[{name}]({page}.md#{name.replace('.', '')})"
        parts.append("" if section.__doc__ == BaseModel.__doc__ else inspect.cleandoc(section.__doc__ or ""))
        rows = []
        for key, field in section.model_fields.items():
            nested = f"{name}.{key}".lstrip(".")
            default = (
                f"[{nested}](#{nested.replace('.', '')})" if isinstance(field.default, BaseModel) else _default(field)
            )
            rows.append(f"| `{key}` | {default} | {_cell(reason(section, key, reasons))} |")
        parts.append("| key | default | |\n| --- | --- | --- |\n" + "\n".join(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def reasons_of_settings() -> dict[tuple[str, str], str]:
    """For each (class, field) of all settings, the comment beside it."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "handmesh" / "config").glob("*.py")]
    return {place: comment for source in sources for place, comment in field_comments(source).items()}


def sections(name: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section of settings and those within it, by their dotted names."""
    yield name, section
    for key, field in section.model_fields.items():
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(f"{name}.{key}".lstrip("."), kind)


def _kinds(annotation: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


def _default(field: FieldInfo) -> str:
    """Its default, type and limits."""
    value = "must be given" if field.is_required() else f"`{_rounded(field.default)}`"
    kind = re.sub(r"\b(?:handmesh\.config\.\w+|pathlib|typing)\.", "", inspect.formatannotation(field.annotation))
    kind = re.sub(r"Annotated\[(\w+), FieldInfo\(.*?\)\)?\]", r"\1", kind)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    limits = [f"{signs[key]} {getattr(rule, key)}" for rule in field.metadata for key in signs if hasattr(rule, key)]
    kind = ", ".join([_literals(kind).replace("_local.", "").replace(" | None", " or None"), *limits])
    return _cell(f"{value}<br>{kind}")


def _literals(kind: str) -> str:
    """`Literal['a', 'b']` as `a, b`."""
    return re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", ""), kind)


def _rounded(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def reason(section: type[BaseModel], key: str, reasons: dict[tuple[str, str], str]) -> str:
    """Its own, or that of the class it inherits from."""
    return next((text for kind in section.__mro__ if (text := reasons.get((kind.__name__, key)))), "")


def commands_page() -> str:
    """`--help` of every command."""
    import typer

    from handmesh.cli import app

    parts = ["# Commands", "What `--help` says."]

    def describe(command: Any, name: str, parent: Any) -> None:
        context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=88)
        parts.append(f"## {context.command_path}\n\n```text\n{context.get_help().rstrip()}\n```")
        for word in getattr(command, "commands", {}):
            describe(command.commands[word], word, context)

    describe(typer.main.get_command(app), "handmesh", None)
    return "\n\n".join(parts) + "\n"


def http_page() -> str:
    """The service's OpenAPI document as a page."""
    from handmesh_server.app import create_app

    document = create_app().openapi()
    parts = [
        "# The HTTP interface",
        "Made from the service's OpenAPI document, which a server gives at `/openapi.json`. "
        "How to run one: [the HTTP service](../how_to/serving.md). "
        "Cameras, over a WebSocket: [the live stream](live_stream.md).",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += [f"## {method.upper()} {path}", operation.get("summary", "")]
            parts.append(operation.get("requestBody", {}).get("description", ""))
            for place in ("path", "query"):
                rows = [
                    f"| `{one['name']}` | {_parameter(one['schema'])} | {_cell(one.get('description', ''))} |"
                    for one in operation.get("parameters", [])
                    if one["in"] == place
                ]
                if rows:
                    parts.append(f"| {place} | | |\n| --- | --- | --- |\n" + "\n".join(rows))
            rows = [
                f"| {status} | {_cell(answer.get('description', ''))} | {_contents(answer)} |"
                for status, answer in operation["responses"].items()
                if status != "default"
            ]
            parts.append("| status | | content |\n| --- | --- | --- |\n" + "\n".join(rows))
    for name, schema in document["components"]["schemas"].items():
        rows = [
            f"| `{key}` | {_schema_name(one)} | {_cell(one.get('description', ''))} |"
            for key, one in schema.get("properties", {}).items()
        ]
        if rows:
            table = "| key | type | |\n| --- | --- | --- |\n" + "\n".join(rows)
            parts += [f"## {name}", schema.get("description", ""), table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _contents(answer: dict[str, Any]) -> str:
    return ", ".join(
        f"`{kind}`" + (f" {_schema_name(one['schema'])}" if "$ref" in one.get("schema", {}) else "")
        for kind, one in answer.get("content", {}).items()
    )


def _parameter(schema: dict[str, Any]) -> str:
    """Its type, and what it is when it is not said."""
    kind = _schema_name(schema).removesuffix(" or null")
    default = schema.get("default")
    if isinstance(default, list):  # of a parameter that may be repeated
        default = default[0] if default else None
    if default is None:
        return kind
    return f"{kind}; default `{default if isinstance(default, str) else json.dumps(default)}`"


def _schema_name(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_schema_name(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_schema_name(schema['items'])}" if "items" in schema else "list"
    limits = [f"{sign} {schema[key]:g}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return " ".join([str(schema.get("type", "")), ", ".join(limits)]).strip()


# What else programs call, by what it is for. The door's own names are found by themselves.
MODULES = {
    "Files": ("handmesh.files.mesh", "handmesh.files.image"),
    "Cameras and crops": ("handmesh.geometry.camera", "handmesh.geometry.crop"),
    "The hand": ("handmesh.hand.skeleton", "handmesh.hand.arrays", "handmesh.hand.fit"),
    "Clips": ("handmesh.motion.track", "handmesh.motion.smoothing", "handmesh.motion.log"),
    "A running service": ("handmesh.client.service", "handmesh.client.live", "handmesh.client.http"),
    "Engines": ("handmesh.runtime.engine",),
    "Scores": ("handmesh.metrics",),
    "Synthetic hands": ("handmesh.synth.scene",),
}


def python_pages() -> dict[str, str]:
    """Directives from which mkdocstrings makes the reference of Python names: the door's, and what lies behind it."""
    import handmesh

    door = ["# Python", "What `import handmesh` offers. What else programs call: [module by module](modules.md)."]
    first = ["load_predictor", "Predictor", "HandPrediction"]
    rest = sorted(name for name in handmesh.__all__ if name not in first and not name.startswith("__"))
    door += [f"::: handmesh.{name}\n    options:\n      heading_level: 2" for name in first + rest]
    parts = ["# Python, module by module", "Beyond [what `import handmesh` offers](python.md)."]
    for title, modules in MODULES.items():
        parts.append(f"## {title}")
        parts += [f"::: {module}\n    options:\n      heading_level: 3" for module in modules]
    return {"python": "\n\n".join(door) + "\n", "modules": "\n\n".join(parts) + "\n"}


if __name__ == "__main__":
    main()
