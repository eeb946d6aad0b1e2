"""Hands as files: .glb, .obj, .ply, .stl and .html to look at and model with, .npz and .json to compute with.

Two frames, one rule, here and nowhere else. Data (.npz, .json) are a hand as it is computed, in the hand frame, and
the way from there to the camera. Scenes (.glb, .obj, .ply, .stl, .html) hold it where it is in the camera frame, so
that several hands are placed to each other; and since 3D programs want y up, as (x, -y, -z): a half turn about x, which
mirrors nothing. A hand seen from the camera is then seen from +z, the way three.js looks at a new scene. All lengths
are metres. Faces are counter-clockwise seen from outside, for right hands and left ones alike. Every format:
docs/reference/outputs.md. trimesh writes .obj, .ply and .stl; its other formats are one `MeshHand.to_trimesh()` away.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic_core import to_json

from handmesh.errors import ExportError
from handmesh.files.glb import Glb, generator, gltf_normals, linear_from_srgb
from handmesh.hand import BETA_COUNT, BONES, FACE_COUNT, JOINT_NAMES, MANO_JOINT_COUNT, VERTEX_COUNT, Handedness
from handmesh.system.atomic import write_atomically

if TYPE_CHECKING:
    from trimesh import Trimesh

# The version of the .json and .npz schema; it grows when a reader of the old one would misread the new.
SCHEMA_VERSION: Final = 1

# Neutral light grey of plaster: sRGB.
DEFAULT_COLOR: Final = (206, 200, 194)

_Y_UP = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True, eq=False)
class MeshHand:
    """One hand to write, in the hand frame. Metres; x right, y down, z forward."""

    vertices: NDArray[np.floating[Any]]  # (V, 3)
    faces: NDArray[np.integer[Any]]  # (F, 3) counter-clockwise seen from outside
    joints: NDArray[np.floating[Any]]  # (21, 3) in the order of hand.JOINT_NAMES
    handedness: Handedness
    name: str = "hand"  # of the node or object
    # points_cam = cam_from_hand_axes @ points + translation
    translation: tuple[float, float, float] | NDArray[np.floating[Any]] = (0.0, 0.0, 0.0)
    cam_from_hand_axes: NDArray[np.floating[Any]] = field(default_factory=lambda: np.eye(3))
    color: ArrayLike = DEFAULT_COLOR  # (3,) or (V, 3) sRGB 0..255
    # What else .npz and .json should hold: arrays, numbers, strings, None, or mappings of these.
    extra: Mapping[str, Any] = field(default_factory=dict)

    def vertices_cam(self) -> NDArray[np.float64]:
        """(V, 3)"""
        return np.asarray(self.vertices, np.float64) @ self.cam_from_hand_axes.T + np.asarray(self.translation)

    def to_trimesh(self) -> Trimesh:
        """A trimesh.Trimesh with normals and colours: the door to its other formats and tools. Camera frame, y up."""
        return _one_mesh([self])


def write_hands(path: str | os.PathLike[str], hands: Sequence[MeshHand]) -> None:
    """Write hands in the format of the path's suffix, one of MESH_SUFFIXES; all or nothing. Raises ExportError."""
    target = Path(path)
    write_atomically(target, encode_hands(hands, target.suffix))


def encode_hands(hands: Sequence[MeshHand], suffix: str) -> bytes:
    """The bytes of such a file, for those who send it elsewhere. Raises ExportError."""
    for hand in hands:
        _check(hand)
    if suffix.lower() not in _ENCODERS:
        raise ExportError(
            f"Cannot write hands as {suffix or 'a file without suffix'!r}; wanted one of {MESH_SUFFIXES}."
        )
    return _ENCODERS[suffix.lower()](hands)


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
        (hand.cam_from_hand_axes.shape == (3, 3), f"cam_from_hand_axes is {hand.cam_from_hand_axes.shape}"),
        (np.shape(hand.translation) == (3,), f"translation is {np.shape(hand.translation)}, wanted (3,)"),
        (np.shape(hand.color) in ((3,), (count, 3)), f"color is {np.shape(hand.color)}, wanted (3,) or ({count}, 3)"),
    )
    for right, message in wanted:
        if not right:
            raise ExportError(f"Cannot write {hand.name!r}: {message}.")
    if not len(faces) or faces.min() < 0 or faces.max() >= count:
        raise ExportError(f"Cannot write {hand.name!r}: its faces are none, or name vertices it does not have.")
    for name in ("vertices", "joints", "translation", "cam_from_hand_axes"):
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


def _glb(hands: Sequence[MeshHand]) -> bytes:
    glb = Glb()
    for hand in hands:
        material = {
            "name": f"{hand.name} skin",
            "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.7},
            "doubleSided": True,  # the wrist is open: one can look inside
        }
        # The node stands at the hand's origin: only its axes are the camera's.
        vertices = _y_up(hand.vertices @ hand.cam_from_hand_axes.T)
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
                "joints": _rounded(_y_up(hand.joints @ hand.cam_from_hand_axes.T)),  # metres, in the node's own frame
            },
        }
        glb.document["scenes"][0].setdefault("nodes", []).append(glb.add("nodes", node))
    return glb.encode()


def _obj(hands: Sequence[MeshHand]) -> bytes:
    import trimesh

    scene = trimesh.Scene()
    for hand in hands:
        # A space in an object's name ends it for some readers.
        scene.add_geometry(hand.to_trimesh(), geom_name=hand.name.replace(" ", "_"))
    header = f"{generator()}: metres, y up, vertex colours as r g b after x y z"
    text: str = trimesh.exchange.obj.export_obj(scene, include_normals=True, digits=6, header=header)
    return text.encode()


def _ply(hands: Sequence[MeshHand]) -> bytes:
    import trimesh

    comments, start = [f"comment {generator()}: metres, y up\n"], 0
    for hand in hands:
        last = start + len(hand.vertices) - 1
        comments.append(f"comment {hand.name}: {hand.handedness}, vertices {start} to {last}\n")
        start = last + 1
    content: bytes = trimesh.exchange.ply.export_ply(_one_mesh(hands), vertex_normal=True)
    before, line, after = content.partition(b"format binary_little_endian 1.0\n")
    return before + line + "".join(comments).encode() + after


def _stl(hands: Sequence[MeshHand]) -> bytes:
    import trimesh

    content: bytes = trimesh.exchange.stl.export_stl(_one_mesh(hands))
    return content


def _one_mesh(hands: Sequence[MeshHand]) -> Trimesh:
    """All hands as one mesh, vertices and faces hand after hand, where they are in the camera frame, but y up."""
    import trimesh  # on first use: it takes longer to import than all the rest

    ends = np.cumsum([0, *(len(hand.vertices) for hand in hands)])
    meshes = [(_y_up(hand.vertices_cam()), np.asarray(hand.faces)) for hand in hands]
    return trimesh.Trimesh(
        vertices=np.concatenate([np.zeros((0, 3)), *(vertices for vertices, _ in meshes)]),
        faces=np.concatenate(
            [np.zeros((0, 3), int), *(faces + start for (_, faces), start in zip(meshes, ends[:-1], strict=True))]
        ),
        vertex_normals=np.concatenate([gltf_normals(*mesh) for mesh in meshes]) if meshes else None,
        vertex_colors=np.concatenate([np.zeros((0, 3), np.uint8), *(_colors(hand) for hand in hands)]),
        process=False,
    )


_OWN_FIELDS = ("name", "handedness", "vertices", "joints", "faces", "translation", "cam_from_hand_axes")


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
                "cam_from_hand_axes": _plain(np.asarray(hand.cam_from_hand_axes, np.float64), "cam_from_hand_axes"),
                "joints": _rounded(np.asarray(hand.joints)),
                "vertices": _rounded(np.asarray(hand.vertices)),
                "faces": np.asarray(hand.faces).tolist(),
                **{key: _plain(value, f"{hand.name}: {key}") for key, value in _extra(hand).items()},
            }
            for hand in hands
        ],
    }
    return to_json(document)  # a fifth of the time of the standard library's; only finite numbers come here


# What predicted hands have in `extra` (`predict.as_mesh_hand`): without a hand a file of arrays has no rows of them.
_PREDICTED_FIELDS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "handedness_source": ("U1", ()),
    "handedness_score": ("f8", ()),
    "score": ("f8", ()),
    "joint_scores": ("f4", (len(JOINT_NAMES),)),
    "source": ("U1", ()),
    "box_px": ("f8", (4,)),
    "keypoints_px": ("f4", (len(JOINT_NAMES), 2)),
    "camera_scale_ndc_per_m": ("f8", ()),
    "camera_translation_m": ("f4", (2,)),
    "crop_center_px": ("f8", (2,)),
    "crop_size_px": ("f8", ()),
    "pose": ("f4", (MANO_JOINT_COUNT, 3, 3)),
    "betas": ("f4", (BETA_COUNT,)),
    "intrinsics_px": ("f8", (3, 3)),
    "intrinsics_source": ("U1", ()),
}


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
        "cam_from_hand_axes": np.asarray([hand.cam_from_hand_axes for hand in hands]).reshape(-1, 3, 3),
    }
    for name, count in floats.items():
        arrays[name] = _stacked([np.asarray(getattr(hand, name), np.float32) for hand in hands], name, (0, count, 3))
    arrays["faces"] = _stacked([np.asarray(hand.faces, np.int32) for hand in hands], "faces", (0, FACE_COUNT, 3))
    if not hands:
        arrays |= {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in _PREDICTED_FIELDS.items()}
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


# Each may use those before it.
_VIEWER_MODULES: Final = ("view.js", "mesh.js", "viewer.js")


def _html(hands: Sequence[MeshHand]) -> bytes:
    """A page that shows the hands and can be turned; its viewer, the server's page's too, and the meshes are in it."""
    meshes = [_y_up(hand.vertices_cam()) for hand in hands]
    points = np.concatenate(meshes).astype(np.float64) if meshes else np.zeros((1, 3))
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - center, axis=-1).max()
    document = {
        "center": center.tolist(),
        "radius": 1.05 * max(float(radius), 1e-6),  # of the ball that is seen: somewhat larger than theirs
        "hands": [
            {
                "name": hand.name,
                "handedness": str(hand.handedness),
                "vertices": _base64(vertices, "<f4"),
                "faces": _base64(np.asarray(hand.faces), "<u4"),
                "colors": _base64(_colors(hand), "u1"),
            }
            for hand, vertices in zip(hands, meshes, strict=True)
        ],
    }
    assets = resources.files("handmesh") / "assets"
    modules = [(assets / "viewer" / name).read_text(encoding="utf-8") for name in _VIEWER_MODULES]
    parts = {
        "title": html.escape(", ".join(hand.name for hand in hands) or "No hand"),
        "generator": html.escape(generator()),
        "hands": to_json(document).decode().replace("<", "\\u003c"),  # no name ends the script
        # One script instead of modules, which browsers do not read beside a file.
        "viewer": re.sub(r"^import .*\n|^export ", "", "\n".join(modules), flags=re.MULTILINE),
    }
    page = (assets / "hands.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode()


def notebook_html(hands: Sequence[MeshHand], height: int = 400) -> str:
    """The page of `.html` as an element for a notebook, as wide as its cell and so many pixels high.

    A frame of its own, from which nothing gets out: its script and its style are not the notebook's.
    """
    page = html.escape(encode_hands(hands, ".html").decode())
    return (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width: 100%; height: {height}px; border: 0" '
        'title="hands in 3D"></iframe>'
    )


def _base64(array: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


# Another format is another line here: `save`, the command line and the messages read it from this table.
_ENCODERS: Final[dict[str, Callable[[Sequence[MeshHand]], bytes]]] = {
    ".glb": _glb,
    ".obj": _obj,
    ".ply": _ply,
    ".stl": _stl,
    ".npz": _npz,
    ".json": _json,
    ".html": _html,
}
MESH_SUFFIXES: Final = tuple(_ENCODERS)
