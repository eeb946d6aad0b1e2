"""Hands as files: .glb, .obj, .ply and .html to look at and model with, .npz and .json to compute with.

Two sets of axes, one rule. Handmesh computes on the camera's axes (x right, y down, z forward); .npz and .json keep
them. 3D programs want y up, so .glb, .obj, .ply and .html hold (x, -y, -z): a half turn about x, which mirrors nothing.
A hand seen from the camera is then seen from +z, the way three.js looks at a new scene. All lengths are metres. Faces
are counter-clockwise seen from outside, for right hands and left ones alike. docs/outputs.md describes every format.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic_core import to_json

from handmesh.errors import ExportError
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import BONES, FACE_COUNT, JOINT_NAMES, VERTEX_COUNT, Handedness
from handmesh.system.atomic import write_atomically

MESH_SUFFIXES: Final = (".glb", ".obj", ".ply", ".npz", ".json", ".html")

# The version of the .json and .npz schema; it grows when a reader of the old one would misread the new.
SCHEMA_VERSION: Final = 1

# Neutral light grey of plaster: sRGB.
DEFAULT_COLOR: Final = (206, 200, 194)

_Y_UP = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True, eq=False)
class MeshHand:
    """One hand to write. Metres; x right, y down, z forward. docs/outputs.md says which frame predictions are in."""

    vertices: NDArray[np.floating[Any]]  # (V, 3) from the hand's origin
    faces: NDArray[np.integer[Any]]  # (F, 3) counter-clockwise seen from outside
    joints: NDArray[np.floating[Any]]  # (21, 3) from the hand's origin, in the order of hand.JOINT_NAMES
    handedness: Handedness
    name: str = "hand"  # of the node or object
    translation: tuple[float, float, float] | NDArray[np.floating[Any]] = (0.0, 0.0, 0.0)  # the hand's origin
    color: ArrayLike = DEFAULT_COLOR  # (3,) or (V, 3) sRGB 0..255
    # What else .npz and .json should hold: arrays, numbers, strings, None, or mappings of these.
    extra: Mapping[str, Any] = field(default_factory=dict)


def save_hands(path: str | os.PathLike[str], hands: Sequence[MeshHand]) -> None:
    """Write hands in the format of the path's suffix, one of MESH_SUFFIXES; all or nothing. Raises ExportError."""
    target = Path(path)
    write_atomically(target, encode_hands(hands, target.suffix))


def encode_hands(hands: Sequence[MeshHand], suffix: str) -> bytes:
    """The bytes of such a file, for those who send it elsewhere. Raises ExportError."""
    for hand in hands:
        _check(hand)
    encoders = {
        ".glb": _glb,
        ".obj": _obj,
        ".ply": _ply,
        ".npz": _npz,
        ".json": _json,
        ".html": _html,
    }
    if suffix.lower() not in encoders:
        raise ExportError(
            f"Cannot write hands as {suffix or 'a file without suffix'!r}; wanted one of {MESH_SUFFIXES}."
        )
    return encoders[suffix.lower()](hands)


def _check(hand: MeshHand) -> None:
    vertices, faces, joints = np.asarray(hand.vertices), np.asarray(hand.faces), np.asarray(hand.joints)
    count = len(vertices)
    wanted = (
        (vertices.ndim == 2 and vertices.shape[1] == 3, f"vertices are {vertices.shape}, wanted (V, 3)"),
        (
            faces.ndim == 2 and faces.shape[1] == 3 and faces.dtype.kind in "iu",
            f"faces are {faces.dtype} {faces.shape}, wanted (F, 3) integers",
        ),
        (joints.shape == (len(JOINT_NAMES), 3), f"joints are {joints.shape}, wanted ({len(JOINT_NAMES)}, 3)"),
        (np.shape(hand.translation) == (3,), f"translation is {np.shape(hand.translation)}, wanted (3,)"),
        (np.shape(hand.color) in ((3,), (count, 3)), f"color is {np.shape(hand.color)}, wanted (3,) or ({count}, 3)"),
    )
    for right, message in wanted:
        if not right:
            raise ExportError(f"Cannot write {hand.name!r}: {message}.")
    if not len(faces) or faces.min() < 0 or faces.max() >= count:
        raise ExportError(f"Cannot write {hand.name!r}: its faces are none, or name vertices it does not have.")
    for name in ("vertices", "joints", "translation"):
        if not np.isfinite(getattr(hand, name)).all():
            raise ExportError(f"Cannot write {hand.name!r}: its {name} are not all finite numbers.")
    if any(character < " " for character in hand.name):
        raise ExportError(f"Cannot write {hand.name!r}: a name is one line of text.")


def _y_up(points: ArrayLike) -> NDArray[np.float32]:
    return (np.asarray(points, np.float64) * _Y_UP + 0.0).astype(np.float32)  # + 0.0 turns -0.0 into 0.0


def _colors(hand: MeshHand) -> NDArray[np.uint8]:
    """(V, 3) sRGB."""
    color = np.clip(np.rint(np.asarray(hand.color, np.float64)), 0, 255).astype(np.uint8)
    return np.broadcast_to(color, (len(hand.vertices), 3))


def linear_from_srgb(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """IEC 61966-2-1. glTF's vertex colours are linear (glTF 2.0, section 3.9.2)."""
    value = srgb.astype(np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


class Glb:
    """A binary glTF 2.0 file in the making: arrays become accessors in one buffer."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": generator()},
            "scene": 0,
            "scenes": [{"name": "hands"}],
        }
        self._buffer = bytearray()

    def add(self, section: str, item: dict[str, Any]) -> int:
        """Append to a top-level list; returns the index by which others refer to it."""
        items: list[dict[str, Any]] = self.document.setdefault(section, [])
        items.append(item)
        return len(items) - 1

    def accessor(self, array: NDArray[Any], target: Literal["vertices", "indices"] | None = None) -> int:
        """Append (N,) scalars, (N, 2 to 4) vectors or (N, 4, 4) matrices of float32 or unsigned integers.

        `target` says what the graphics card needs them for; None for animations and the like. glTF's matrices are
        stored column by column; these are matrices as numpy has them.
        """
        array = np.ascontiguousarray(array.swapaxes(-1, -2) if array.ndim == 3 else array)
        self._buffer += b"\0" * (-len(self._buffer) % 4)
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self._buffer), "byteLength": array.nbytes}
        if target is not None:
            view["target"] = 34962 if target == "vertices" else 34963
        self._buffer += array.astype(array.dtype.newbyteorder("<")).tobytes()
        rows = array.reshape(len(array), -1)
        item: dict[str, Any] = {
            "bufferView": self.add("bufferViews", view),
            "componentType": {"f4": 5126, "u1": 5121, "u2": 5123, "u4": 5125}[array.dtype.str[1:]],
            "count": len(array),
            "type": {1: "SCALAR", 2: f"VEC{rows.shape[1]}", 3: "MAT4"}[array.ndim],
            # Demanded for positions and times; kept as the float32 numbers they are, for validators compare exactly.
            "min": rows.min(axis=0).tolist(),
            "max": rows.max(axis=0).tolist(),
        }
        return self.add("accessors", item)

    def encode(self) -> bytes:
        """Header, JSON chunk, binary chunk, each padded to four bytes (glTF 2.0, section 4.4)."""
        chunks = b""
        if self._buffer:
            self.document["buffers"] = [{"byteLength": len(self._buffer)}]
        text = json.dumps(self.document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks += struct.pack("<I4s", len(text), b"JSON") + text
        if self._buffer:
            binary = bytes(self._buffer) + b"\0" * (-len(self._buffer) % 4)
            chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _glb(hands: Sequence[MeshHand]) -> bytes:
    glb = Glb()
    for hand in hands:
        material = {
            "name": f"{hand.name} skin",
            "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.7},
            "doubleSided": True,  # the wrist is open: one can look inside
        }
        vertices = _y_up(hand.vertices)
        faces = np.asarray(hand.faces)
        primitive = {
            "attributes": {
                "POSITION": glb.accessor(vertices, "vertices"),
                "NORMAL": glb.accessor(gltf_normals(vertices, faces), "vertices"),
                "COLOR_0": glb.accessor(linear_from_srgb(_colors(hand)), "vertices"),
            },
            # 65,535 is not a vertex in 16 bits: it restarts the strip (glTF 2.0, section 3.7.2.1).
            "indices": glb.accessor(
                faces.ravel().astype(np.uint16 if len(vertices) < 0xFFFF else np.uint32), "indices"
            ),
            "material": glb.add("materials", material),
        }
        node = {
            "name": hand.name,
            "mesh": glb.add("meshes", {"name": hand.name, "primitives": [primitive]}),
            "translation": _y_up(hand.translation).tolist(),
            "extras": {
                "handedness": str(hand.handedness),
                "joint_names": list(JOINT_NAMES),
                "joints": _rounded(_y_up(hand.joints)),  # metres, in the node's own frame
            },
        }
        glb.document["scenes"][0].setdefault("nodes", []).append(glb.add("nodes", node))
    return glb.encode()


def gltf_normals(vertices: NDArray[np.float32], faces: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Unit length everywhere, as glTF demands, also at a vertex without a face."""
    normals = vertex_normals(vertices.astype(np.float64), faces)
    normals[(normals == 0).all(axis=-1)] = (0.0, 0.0, 1.0)
    return normals.astype(np.float32)


def _placed(hand: MeshHand) -> NDArray[np.float32]:
    """(V, 3) vertices with the hand where it is, y up: for formats without nodes."""
    return _y_up(np.asarray(hand.vertices, np.float64) + np.asarray(hand.translation, np.float64))


def _obj(hands: Sequence[MeshHand]) -> bytes:
    lines = [f"# {generator()}: metres, y up, vertex colours as r g b after x y z"]
    start = 1
    for hand in hands:
        vertices, faces = _placed(hand), np.asarray(hand.faces)
        # A space in an object's name ends it for some readers.
        lines.append(f"o {hand.name.replace(' ', '_')}")
        lines += [
            f"v {x:.6f} {y:.6f} {z:.6f} {red:.4f} {green:.4f} {blue:.4f}"
            for (x, y, z), (red, green, blue) in zip(vertices.tolist(), (_colors(hand) / 255).tolist(), strict=True)
        ]
        lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in gltf_normals(vertices, faces).tolist()]
        lines += ["f " + " ".join(f"{i}//{i}" for i in face) for face in (faces.astype(np.int64) + start).tolist()]
        start += len(vertices)
    return ("\n".join(lines) + "\n").encode()


def _ply(hands: Sequence[MeshHand]) -> bytes:
    vertex_type = np.dtype(
        [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
        + [(name, "u1") for name in ("red", "green", "blue")]
    )
    face_type = np.dtype([("count", "u1"), ("vertices", "<i4", (3,))])
    comments, vertex_rows, face_rows = [], [np.zeros(0, vertex_type)], [np.zeros(0, face_type)]
    start = 0
    for hand in hands:
        vertices, faces = _placed(hand), np.asarray(hand.faces)
        rows = np.zeros(len(vertices), vertex_type)
        columns = np.hstack([vertices, gltf_normals(vertices, faces)])
        for name, column in zip(("x", "y", "z", "nx", "ny", "nz"), columns.T, strict=True):
            rows[name] = column
        for name, shade in zip(("red", "green", "blue"), _colors(hand).T, strict=True):
            rows[name] = shade
        triangles = np.zeros(len(faces), face_type)
        triangles["count"] = 3
        triangles["vertices"] = faces.astype(np.int64) + start
        comments.append(f"comment {hand.name}: {hand.handedness}, vertices {start} to {start + len(vertices) - 1}")
        vertex_rows.append(rows)
        face_rows.append(triangles)
        start += len(vertices)
    all_vertices, all_faces = np.concatenate(vertex_rows), np.concatenate(face_rows)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {generator()}: metres, y up",
        *comments,
        f"element vertex {len(all_vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(all_faces)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    return "\n".join(header).encode() + all_vertices.tobytes() + all_faces.tobytes()


_OWN_FIELDS = ("name", "handedness", "vertices", "joints", "faces", "translation")


def _json(hands: Sequence[MeshHand]) -> bytes:
    document = {
        "format": "handmesh.hands",
        "version": SCHEMA_VERSION,
        "generator": generator(),
        "units": {"length": "metre", "angle": "radian", "image": "pixel"},
        "axes": "x right, y down, z forward",
        "joint_names": list(JOINT_NAMES),
        "bones": [list(bone) for bone in BONES],
        "hands": [
            {
                "name": hand.name,
                "handedness": str(hand.handedness),
                "translation": _rounded(np.asarray(hand.translation)),
                "joints": _rounded(np.asarray(hand.joints)),
                "vertices": _rounded(np.asarray(hand.vertices)),
                "faces": np.asarray(hand.faces).tolist(),
                **{key: _plain(value, f"{hand.name}: {key}") for key, value in _extra(hand).items()},
            }
            for hand in hands
        ],
    }
    return to_json(document)  # a fifth of the time of the standard library's; only finite numbers come here


def _npz(hands: Sequence[MeshHand]) -> bytes:
    """Hands stacked along the first axis of every array."""
    floats = {"vertices": VERTEX_COUNT, "joints": len(JOINT_NAMES)}
    arrays: dict[str, NDArray[Any]] = {
        "version": np.asarray(SCHEMA_VERSION),
        "joint_names": np.asarray(JOINT_NAMES),
        "bones": np.asarray(BONES),
        "name": np.asarray([hand.name for hand in hands], dtype=str),
        "handedness": np.asarray([str(hand.handedness) for hand in hands], dtype=str),
        "translation": np.asarray([hand.translation for hand in hands], np.float32).reshape(-1, 3),
    }
    for name, count in floats.items():
        arrays[name] = _stacked([np.asarray(getattr(hand, name), np.float32) for hand in hands], name, (0, count, 3))
    arrays["faces"] = _stacked([np.asarray(hand.faces, np.int32) for hand in hands], "faces", (0, FACE_COUNT, 3))
    flat = [_flat(_extra(hand)) for hand in hands]
    for name in dict.fromkeys(key for one in flat for key in one):
        if not all(name in one for one in flat):
            raise ExportError(f"Cannot write .npz: not every hand has the field {name!r}.")
        arrays[name] = _stacked(_same_kind([one[name] for one in flat]), name, (0,))
    # As numpy.savez does, which cannot name an array "file", nor promise the same bytes for the same hands.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _stacked(arrays: Sequence[NDArray[Any]], name: str, empty: tuple[int, ...]) -> NDArray[Any]:
    if not arrays:
        return np.zeros(empty, np.int32 if name == "faces" else np.float32)
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ExportError(f"Cannot write .npz: {name} differs in shape from hand to hand ({shapes}). Write .json.")
    stacked = np.stack(arrays)
    if stacked.dtype.kind not in "biufU":
        raise ExportError(f"Cannot write .npz: {name} is of type {stacked.dtype}; wanted numbers or text.")
    return stacked


def _same_kind(values: Sequence[Any]) -> list[NDArray[Any]]:
    """None stands for "not known": NaN among numbers, the empty text among texts."""
    known = [np.asarray(value) for value in values if value is not None]
    blank: Any = "" if known and known[0].dtype.kind == "U" else np.full(known[0].shape if known else (), np.nan)
    return [np.asarray(blank if value is None else value) for value in values]


def _extra(hand: MeshHand) -> Mapping[str, Any]:
    for key in hand.extra:
        if key in _OWN_FIELDS:
            raise ExportError(f"Cannot write {hand.name!r}: the extra field {key!r} is one of the format's own.")
    return hand.extra


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _plain(value: Any, name: str) -> Any:
    """As JSON has it. Floating point numbers keep seven significant digits, as many as float32 has."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ExportError(f"Cannot write .json: {name} holds {value}, and JSON has finite numbers only.")
        return float(f"{value:.7g}")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isfinite(value).all():
        return np.array([float(f"{one:.7g}") for one in value.ravel().tolist()]).reshape(value.shape).tolist()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        return _plain(value.tolist(), name)
    raise ExportError(f"Cannot write .json: {name} is a {type(value).__name__}; wanted numbers, text or arrays.")


def _rounded(metres: NDArray[np.floating[Any]]) -> Any:
    """Nested lists, to the micrometre."""
    return (np.round(metres.astype(np.float64), 6) + 0.0).tolist()


def _html(hands: Sequence[MeshHand]) -> bytes:
    """A page that shows the hands and can be turned with the mouse; trimesh's viewer, which needs no network."""
    if not hands:
        raise ExportError("Cannot write .html: there is no hand to show.")
    # On first use: it takes longer to import than all the rest.
    import trimesh
    from trimesh.viewer.notebook import scene_to_html
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    # The viewer's light shines from the camera to the origin: that is where the hands must be, or they stay dark.
    center = np.mean([hand.vertices.mean(axis=0) + np.asarray(hand.translation) for hand in hands], axis=0)
    scene = trimesh.Scene()
    for hand in hands:
        vertices, faces = _y_up(hand.vertices), np.asarray(hand.faces)
        # glTF's default material is a metal, which is black where there is nothing to reflect: say that skin is none.
        # Its light is 1.75 strong and its output is not encoded, so colours are sRGB as they are, that much darker.
        skin = PBRMaterial(
            metallicFactor=0.0, roughnessFactor=0.7, doubleSided=True, baseColorFactor=[0.57, 0.57, 0.57, 1.0]
        )
        visual = TextureVisuals(material=skin)
        visual.vertex_attributes["color"] = np.hstack([_colors(hand), np.full((len(vertices), 1), 255, np.uint8)])
        normals = gltf_normals(vertices, faces)
        mesh = trimesh.Trimesh(vertices, faces, vertex_normals=normals, visual=visual, process=False)
        place = np.eye(4)
        place[:3, 3] = _y_up(np.asarray(hand.translation) - center)
        scene.add_geometry(mesh, node_name=hand.name, geom_name=hand.name, transform=place)
    page: str = scene_to_html(scene)
    return page.encode()


@cache
def generator() -> str:
    try:
        return f"handmesh {metadata.version('handmesh')}"
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "handmesh"
