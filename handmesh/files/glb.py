"""Binary glTF 2.0, as it is written here: still hands in mesh.py, skinned and moving ones in animation.py."""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import handmesh
from handmesh.geometry.normals import vertex_normals


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


def gltf_normals(vertices: NDArray[np.float32], faces: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Unit length everywhere, as glTF demands, also at a vertex without a face."""
    normals = vertex_normals(vertices.astype(np.float64), faces)
    normals[(normals == 0).all(axis=-1)] = (0.0, 0.0, 1.0)
    return normals.astype(np.float32)


def linear_from_srgb(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """IEC 61966-2-1. glTF's vertex colours are linear (glTF 2.0, section 3.9.2)."""
    value = srgb.astype(np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def generator() -> str:
    return f"handmesh {handmesh.__version__}"
