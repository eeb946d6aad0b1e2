"""Hands -> the bytes of an answer, in the form that the client's Accept header asks for."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from handmesh.errors import ExportError
from handmesh.files.image import LargePhoto, Photo, encode_image
from handmesh.files.mesh import SCHEMA_VERSION, encode_hands
from handmesh.hand import (
    BONES,
    FINGERTIP_VERTICES,
    JOINT_NAMES,
    JOINT_PARENTS,
    MANO_JOINT_NAMES,
    MANO_PARENTS,
    HandArrays,
)
from handmesh.predict import HandPrediction, as_mesh_hand, overlay_hands
from handmesh_server.errors import NotAcceptable
from handmesh_server.schemas import HandsQuery

JSON: Final = "application/json"

# What POST /v1/hands answers with; of equally welcome ones, the first.
MEDIA_TYPES: Final[dict[str, str]] = {
    JSON: "everything, as text",
    "model/gltf-binary": "meshes, to look at",
    "application/x-npz": "everything, as numpy arrays",
    "image/png": "the photo with the meshes drawn on it",
    "image/jpeg": "the same, smaller",
    "model/obj": "meshes, as text",
}
_SUFFIXES: Final = {
    "model/gltf-binary": ".glb",
    "application/x-npz": ".npz",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "model/obj": ".obj",
}

# In the `numbers` encoding: metres to the micrometre, pixels to the hundredth; the rest is scale-free.
_DECIMALS: Final = {"vertices": 6, "joints": 6, "translation": 6, "keypoints_px": 2, "box_px": 2}
_MAX_DECIMALS: Final = 7

_GZIP_LEVEL: Final = 4  # measured: 0.37 of one hand's bytes, in 0.6 ms
_GZIP_FORMAT: Final = 31  # of zlib's `wbits`: a gzip header and the largest window

Encoding = Literal["numbers", "base64"]


@dataclass(frozen=True)
class Answer:
    """Ready to send."""

    content: bytes
    media_type: str
    hands: int
    headers: Mapping[str, str]


def negotiate(accept: str | None) -> str:
    """The media type that an Accept header (RFC 9110, section 12.5.1) likes best. Raises NotAcceptable."""
    if accept is None or not accept.strip():
        return JSON
    accepted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        accepted[name] = max(accepted.get(name, 0.0), _quality(parameters))
    best, most = None, 0.0
    for media_type in MEDIA_TYPES:
        ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        quality = next((accepted[one] for one in ranges if one in accepted), 0.0)
        if quality > most:
            best, most = media_type, quality
    if best is None:
        raise NotAcceptable(f"Accept is {accept[:200]!r}; there are: {', '.join(MEDIA_TYPES)}.")
    return best


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def takes_gzip(accept_encoding: str | None) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, section 12.5.3) takes gzip."""
    codings: dict[str, float] = {}
    for part in (accept_encoding or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        codings[name] = _quality(parameters)
    return codings.get("gzip", codings.get("*", 0.0)) > 0


def compressed(content: bytes, gzip: bool) -> tuple[bytes, dict[str, str]]:
    """What is sent, and the headers that say so."""
    headers = {"Vary": "Accept, Accept-Encoding"}
    if not gzip:
        return content, headers
    return zlib.compress(content, _GZIP_LEVEL, wbits=_GZIP_FORMAT), headers | {"Content-Encoding": "gzip"}


def encode_answer(
    hands: Sequence[HandPrediction],
    photo: Photo | LargePhoto,
    query: HandsQuery,
    *,
    media_type: str,
    request_id: str = "",
    gzip: bool = False,
) -> Answer:
    """Raises ExportError when a number is not finite. `gzip`: JSON and meshes are compressed; others are already."""
    headers = {"Vary": "Accept"}
    if media_type == JSON:
        content, headers = compressed(_json(hands, photo, query, request_id), gzip)
    elif media_type.startswith("image/"):
        content = encode_image(overlay_hands(photo.image, hands), _SUFFIXES[media_type])
    else:
        suffix = _SUFFIXES[media_type]
        content = encode_hands([as_mesh_hand(hand, index) for index, hand in enumerate(hands)], suffix)
        if media_type.startswith("model/"):
            content, headers = compressed(content, gzip)
    return Answer(content, media_type, len(hands), headers)


def _json(hands: Sequence[HandPrediction], photo: Photo | LargePhoto, query: HandsQuery, request_id: str) -> bytes:
    width, height = photo.size
    return to_json(
        {
            "format": "handmesh.hands",
            "version": SCHEMA_VERSION,
            "request_id": request_id,
            "image": {
                "width": width,
                "height": height,
                "format": photo.format,
                "orientation": photo.orientation,
            },
            "hands": [_hand(hand, index, query.encoding) for index, hand in enumerate(hands)],
        }
    )


def _hand(hand: HandPrediction, index: int, encoding: Encoding) -> dict[str, Any]:
    mesh = as_mesh_hand(hand, index)
    fields: Mapping[str, Any] = {
        "name": mesh.name,
        "handedness": str(mesh.handedness),
        "translation": np.asarray(mesh.translation),
        "joints": mesh.joints,
        "vertices": mesh.vertices,
        "cam_from_hand_axes": mesh.cam_from_hand_axes,
        **mesh.extra,
    }
    return {name: _plain(value, name, encoding) for name, value in fields.items()}


def _plain(value: Any, name: str, encoding: Encoding) -> Any:
    if isinstance(value, np.ndarray):
        if not np.isfinite(value).all():
            raise ExportError(f"The model answered with numbers that are not finite: {name}.")
        if encoding == "base64":
            return _base64(value)
        return np.round(value.astype(np.float64), _DECIMALS.get(name, _MAX_DECIMALS)).tolist()
    return float(value) if isinstance(value, float | np.floating) else value


def _base64(array: NDArray[Any]) -> dict[str, Any]:
    packed = base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")
    return {"dtype": "float32", "shape": list(array.shape), "base64": packed}


def topology(hand: HandArrays) -> bytes:
    """JSON of what does not change from hand to hand; schemas.Topology."""
    return to_json(
        {
            "faces": {"right": hand.faces.tolist(), "left": hand.mirrored().faces.tolist()},
            "joint_names": JOINT_NAMES,
            "joint_parents": JOINT_PARENTS,
            "bones": BONES,
            "fingertip_vertices": FINGERTIP_VERTICES,
            "pose_joint_names": MANO_JOINT_NAMES,
            "pose_parents": MANO_PARENTS,
        }
    )
