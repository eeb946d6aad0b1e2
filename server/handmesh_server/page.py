"""The web page at /, as files: plain HTML, CSS and JavaScript modules in `static/`, sent as they are, and the viewer of
handmesh (`handmesh/assets/viewer`) as `static/viewer`.

Nothing is built, and nothing comes from elsewhere: the page works without a network. What it must know that Python
knows better (colours, samples, limits) it reads from `static/page.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from handmesh.draw.colors import FINGER_COLORS, HAND_COLORS, WRIST_COLOR
from handmesh.hand import FINGER_NAMES, JOINT_NAMES
from handmesh_server.settings import Settings

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}

# Everything from this server, nothing inline, no strings turned into code, in nobody's frame.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; media-src 'self' blob:; require-trusted-types-for 'script'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked about: after an upgrade no old module meets a new one
}


def page_routes(settings: Settings) -> APIRouter:
    """`/` and `/static/...`. Open without a token, for there is nothing in them."""
    static, assets = files("handmesh_server") / "static", files("handmesh") / "assets"
    # Only names that are there now are ever opened, so that no name leads elsewhere.
    known: dict[str, Callable[[], bytes]] = {
        **{name: file.read_bytes for name, file in _walk(static, "")},
        **{name: file.read_bytes for part in ("samples", "viewer") for name, file in _walk(assets / part, f"{part}/")},
    }
    sample_names = sorted(name for name in known if name.startswith("samples/"))
    known["page.json"] = partial(_facts, settings, sample_names)
    router = APIRouter(include_in_schema=False)

    def answer(request: Request, name: str) -> Response:
        content = known[name]()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": tag}
        if tag in (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_TYPES[name[name.rindex(".") :]], headers=headers)

    @router.get("/")
    def page(request: Request) -> Response:
        return answer(request, "index.html")

    @router.get("/static/{name:path}")
    def static_file(request: Request, name: str) -> Response:
        if name not in known:
            raise HTTPException(404)
        return answer(request, name)

    return router


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name[entry.name.rfind(".") :] in _TYPES:
            found.append((prefix + entry.name, entry))
    return found


def _facts(settings: Settings, sample_names: list[str]) -> bytes:
    """static/page.json"""
    stems = [name.removeprefix("samples/").rpartition(".")[0] for name in sample_names]
    fingers = [name.partition("_")[0] for name in JOINT_NAMES]
    return to_json(
        {
            "samples": [
                {"name": stem, "src": f"static/{name}"} for stem, name in zip(stems, sample_names, strict=True)
            ],
            "hand_colors": {str(side): color for side, color in HAND_COLORS.items()},
            "joint_colors": [FINGER_COLORS[one] if one in FINGER_NAMES else WRIST_COLOR for one in fingers],
            "max_body_bytes": settings.max_body_bytes,
            "max_clip_bytes": settings.max_upload_bytes,
            "deadline_seconds": settings.deadline_seconds,
        }
    )
