"""Drawing meshes on photographs, on the CPU: a z-buffer renderer.

A mesh to draw is given by `vertices_image`, (N, 3): x and y in image pixels, centres of pixels at integers, and depth,
which grows away from the viewer, in any one unit. Whatever the camera was, its projection has already happened, so weak
perspective and pinhole draw alike and the picture agrees with the projected points. Faces are counter-clockwise seen
from outside. Those turned away are the inside of the mesh: dark, and seen only through an opening such as the wrist.

Light falls by the vertex normals, unit vectors on the camera's axes (x right, y down, z forward). Get them from the
mesh in metres with `geometry.normals.vertex_normals`. When none are given they are computed from `vertices_image`,
which is right only if depth is in pixels too.

Every call uses memory of its own, and the compiled loops run without Python's lock: threads may draw at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.draw.colors import HAND_COLORS
from handmesh.errors import ImageError
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import Handedness
from handmesh.system.kernels import kernel

Box = tuple[int, int, int, int]  # pixels x0 <= x < x1, y0 <= y < y1

# Coordinates are drawn up to this many pixels from the image's corner: beyond it float32 cannot tell half pixels apart.
MAX_COORDINATE: Final = 1e6

_BAND_ROWS: Final = 32  # image rows drawn at a time: the buffers of a band stay in the processor's cache


@dataclass(frozen=True, eq=False)
class ImageMesh:
    """A mesh ready to draw: its projection to the image has happened. See the module's docstring."""

    vertices_image: NDArray[np.floating[Any]]  # (N, 3) x px, y px, depth; not finite = this vertex cannot be drawn
    faces: NDArray[np.integer[Any]]  # (F, 3) counter-clockwise seen from outside
    normals: NDArray[np.floating[Any]] | None = None  # (N, 3) unit, camera's axes; None = depth is in pixels
    color: ArrayLike = HAND_COLORS[Handedness.RIGHT]  # (3,) or (N, 3) RGB, 0..255


def render_mesh(
    vertices_image: NDArray[np.floating[Any]],
    faces: NDArray[np.integer[Any]],
    size: tuple[int, int],
    *,
    normals: NDArray[np.floating[Any]] | None = None,
    color: ArrayLike = HAND_COLORS[Handedness.RIGHT],
) -> NDArray[np.uint8]:
    """Draw one mesh alone, `size` = (width, height) pixels -> (height, width, 4) RGBA uint8.

    Alpha is the covered part of the pixel (2 x 2 samples) and is not multiplied into the colour. Arguments as in
    ImageMesh. Faces with a vertex that is not finite or further out than MAX_COORDINATE are left out.
    Raises ValueError for arrays of other shapes and faces that name no vertex.
    """
    return render_meshes([ImageMesh(vertices_image, faces, normals, color)], size)


def render_meshes(meshes: Sequence[ImageMesh], size: tuple[int, int]) -> NDArray[np.uint8]:
    """As `render_mesh`, for several meshes that hide each other by depth; their depths are in one unit."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"The size of a picture is (width, height) of at least one pixel, found {size}.")
    rgba = np.zeros((height, width, 4), np.uint8)
    scene = drawable_scene(meshes)
    x0, y0, x1, y1 = box_of(scene, width, height)
    if x0 < x1 and y0 < y1:
        rgba[y0:y1, x0:x1] = _draw_box(scene, (x0, y0, x1, y1))
    return rgba


def overlay(
    image: NDArray[np.uint8],
    vertices_image: NDArray[np.floating[Any]],
    faces: NDArray[np.integer[Any]],
    *,
    normals: NDArray[np.floating[Any]] | None = None,
    color: ArrayLike = HAND_COLORS[Handedness.RIGHT],
    opacity: float = 0.9,
) -> NDArray[np.uint8]:
    """Draw one mesh over a copy of an (H, W, 3) uint8 RGB image. Other arguments and errors as in `render_mesh`."""
    return overlay_meshes(image, [ImageMesh(vertices_image, faces, normals, color)], opacity=opacity)


def overlay_meshes(
    image: NDArray[np.uint8],
    meshes: Sequence[ImageMesh],
    *,
    opacity: float = 0.9,
    draw_box: Callable[[Scene, Box], NDArray[np.uint8]] | None = None,
) -> NDArray[np.uint8]:
    """Draw meshes, which hide each other by depth, over a copy of an (H, W, 3) uint8 RGB image.

    Only pixels within the meshes' box are touched. `opacity` is from 0 (nothing) to 1. `draw_box` is another renderer,
    `draw.pytorch3d.draw_box`; None is this one. Raises ImageError for an array that is no such image, and what
    `render_mesh` raises.
    """
    check_image(image)
    if not 0 <= opacity <= 1:
        raise ValueError(f"Opacity is from 0 to 1, found {opacity}.")
    drawn = np.array(image, order="C")
    scene = drawable_scene(meshes)
    box = x0, y0, x1, y1 = box_of(scene, image.shape[1], image.shape[0])
    if x0 < x1 and y0 < y1:
        _composite(drawn[y0:y1, x0:x1], (draw_box or _draw_box)(scene, box), np.float32(opacity))
    return drawn


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises ImageError for what cannot be drawn on."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"An image to draw on is (H, W, 3) uint8 RGB, found {image.dtype} {image.shape}.")


@dataclass(frozen=True, eq=False)
class Scene:
    """All meshes as one, checked, with only the faces that can be drawn."""

    points: NDArray[np.float32]  # (N, 3)
    attributes: NDArray[np.float32]  # (N, 6) normal, then RGB 0..255
    faces: NDArray[np.int32]  # (F, 3)


def drawable_scene(meshes: Sequence[ImageMesh]) -> Scene:
    """Join and check meshes; for the renderers. Raises ValueError as `render_mesh` says."""
    points, attributes = [np.zeros((0, 3), np.float32)], [np.zeros((0, 6), np.float32)]
    faces = [np.zeros((0, 3), np.int32)]
    start = 0
    for mesh in meshes:
        vertices, mesh_faces = np.asarray(mesh.vertices_image), np.asarray(mesh.faces)
        count = len(vertices)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise ValueError(f"vertices_image is (N, 3): x, y in pixels and depth; found {vertices.shape}.")
        if mesh_faces.ndim != 2 or mesh_faces.shape[1] != 3 or mesh_faces.dtype.kind not in "iu":
            raise ValueError(f"Faces are (F, 3) integers, found {mesh_faces.dtype} {mesh_faces.shape}.")
        if len(mesh_faces) and not (mesh_faces.min() >= 0 and mesh_faces.max() < count):
            raise ValueError(f"Faces name vertices {mesh_faces.min()} to {mesh_faces.max()}; there are {count}.")
        mesh_normals = vertex_normals(vertices, mesh_faces) if mesh.normals is None else np.asarray(mesh.normals)
        if mesh_normals.shape != vertices.shape:
            raise ValueError(f"Normals are {vertices.shape}, one for each vertex; found {mesh_normals.shape}.")
        color = np.asarray(mesh.color, dtype=np.float32)
        if color.shape not in ((3,), (count, 3)):
            raise ValueError(f"A color is (3,) or ({count}, 3) RGB, found {color.shape}.")

        # Comparisons with NaN are false, so this leaves out what is not finite as well.
        drawable = (np.abs(vertices[:, :2]) < MAX_COORDINATE).all(axis=1) & (np.abs(vertices[:, 2]) < 1e30)
        if not drawable.all():
            mesh_faces = mesh_faces[drawable[mesh_faces].all(axis=1)]
            vertices = np.where(drawable[:, None], vertices, 0)
        points.append(vertices.astype(np.float32))
        attributes.append(np.hstack([mesh_normals, np.broadcast_to(color, (count, 3))]).astype(np.float32))
        faces.append(mesh_faces.astype(np.int32) + np.int32(start))
        start += count
    return Scene(np.concatenate(points), np.concatenate(attributes), np.concatenate(faces))


def box_of(scene: Scene, width: int, height: int) -> Box:
    """The pixels x0 <= x < x1, y0 <= y < y1 that the scene may touch; empty when x0 >= x1 or y0 >= y1."""
    if len(scene.faces) == 0:
        return (0, 0, 0, 0)
    used = np.zeros(len(scene.points), bool)
    used[scene.faces.ravel()] = True
    x, y = scene.points[used, 0], scene.points[used, 1]  # numpy is ten times slower at min and max along a first axis
    x_min, y_min, x_max, y_max = x.min(), y.min(), x.max(), y.max()
    # A pixel's outermost samples lie a quarter of a pixel from its centre.
    return (
        max(math.ceil(x_min - 0.25), 0),
        max(math.ceil(y_min - 0.25), 0),
        min(math.floor(x_max + 0.25) + 1, width),
        min(math.floor(y_max + 0.25) + 1, height),
    )


def _draw_box(scene: Scene, box: Box) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = box
    rgba = np.zeros((y1 - y0, x1 - x0, 4), np.uint8)
    points = scene.points - np.array([x0, y0, 0], np.float32)
    _draw(points, scene.attributes, scene.faces, rgba)
    return rgba


@kernel()
def _fill_face(points: Any, face: Any, index: int, clip: Any, first_row: int, depths: Any, owners: Any) -> None:
    """Put one face into the z-buffer of a band of samples, within clip = (column, row, last column, last row).

    Where an edge crosses a row of samples is computed from the edge alone, and spans are closed, so that two faces
    which share an edge leave no gap between them.
    """
    half = np.float32(0.5)
    a, b, c = face[0], face[1], face[2]  # from top to bottom
    if points[b, 1] < points[a, 1]:
        a, b = b, a
    if points[c, 1] < points[b, 1]:
        b, c = c, b
        if points[b, 1] < points[a, 1]:
            a, b = b, a
    # There are two samples to a pixel's side: sample i lies at pixel (i - 0.5) / 2, pixel x at sample 2 x + 0.5.
    xa, ya, za = points[a, 0] * 2 + half, points[a, 1] * 2 + half, points[a, 2]
    xb, yb, zb = points[b, 0] * 2 + half, points[b, 1] * 2 + half, points[b, 2]
    xc, yc, zc = points[c, 0] * 2 + half, points[c, 1] * 2 + half, points[c, 2]
    area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
    if area == 0:
        return
    depth_by_x = ((zb - za) * (yc - ya) - (zc - za) * (yb - ya)) / area
    depth_by_y = ((zc - za) * (xb - xa) - (zb - za) * (xc - xa)) / area
    nearest, farthest = min(za, zb, zc), max(za, zb, zc)

    first = max(int(np.ceil(ya)), first_row, clip[1])
    last = min(int(np.floor(yc)), first_row + depths.shape[0] - 1, clip[3])
    for row in range(first, last + 1):
        y = np.float32(row)
        x_long = xa + (y - ya) * ((xc - xa) / (yc - ya))
        if y < yb:
            x_short = xa + (y - ya) * ((xb - xa) / (yb - ya))
        elif yc > yb:
            x_short = xb + (y - yb) * ((xc - xb) / (yc - yb))
        else:
            x_short = xb
        left = max(int(np.ceil(min(x_long, x_short))), clip[0])
        right = min(int(np.floor(max(x_long, x_short))), clip[2])
        depth_at_zero = za + depth_by_y * (y - ya) - depth_by_x * xa
        for column in range(left, right + 1):
            # Kept within the face's own depths: the plane of a face seen edge on is steep.
            depth = min(max(depth_at_zero + depth_by_x * np.float32(column), nearest), farthest)
            if depth < depths[row - first_row, column]:
                depths[row - first_row, column] = depth
                owners[row - first_row, column] = index


@kernel()
def shade_surface(values: Any, outside: bool, rgb: Any) -> None:
    """Colour of a surface, 0..255: two lights, sky and a soft highlight; the inside of a mesh is dark.

    `values` is a normal of any length, then the surface's own colour.
    """
    zero, one = np.float32(0), np.float32(1)
    nx, ny, nz = values[0], values[1], values[2]
    scale = one / np.sqrt(max(nx * nx + ny * ny + nz * nz, np.float32(1e-20)))
    nx, ny, nz = nx * scale, ny * scale, nz * scale
    # Directions to the lights: key from above on the left, before the hand; fill from the right.
    key = max(np.float32(-0.46) * nx - np.float32(0.60) * ny - np.float32(0.65) * nz, zero)
    fill = max(np.float32(0.83) * nx + np.float32(0.10) * ny - np.float32(0.55) * nz, zero)
    # Half way between the key light and the viewer, for the highlight.
    gloss = max(np.float32(-0.253) * nx - np.float32(0.330) * ny - np.float32(0.909) * nz, zero)
    gloss = gloss * gloss
    gloss = gloss * gloss
    gloss = gloss * gloss
    gloss = gloss * gloss
    # The outline darkens, so that fingers stand out from the palm behind them and the hand from a pale background.
    outline = np.float32(0.62) + np.float32(0.38) * min(max(-nz, zero) * np.float32(2.2), one)
    light = np.float32(0.36) - np.float32(0.06) * ny + np.float32(0.62) * key + np.float32(0.16) * fill
    light *= outline
    highlight = np.float32(38) * gloss
    if not outside:
        light, highlight = np.float32(0.2), zero
    for channel in range(3):
        rgb[channel] = min(max(values[3 + channel] * light + highlight, zero), np.float32(255))


@kernel()
def _add(points: Any, faces: Any, planes: Any, index: int, x: Any, y: Any, values: Any) -> None:
    """Add a face's attributes at a point of the image to `values`."""
    dx, dy = x - points[faces[index, 0], 0], y - points[faces[index, 0], 1]
    for k in range(6):
        values[k] += planes[index, 0, k] + dx * planes[index, 1, k] + dy * planes[index, 2, k]


@kernel()
def _draw(points: Any, attributes: Any, faces: Any, rgba: Any) -> None:
    """Draw faces into (H, W, 4) uint8 that is zero everywhere.

    `attributes` is (N, 6): the vertices' normals and RGB. All arrays are float32 except the faces, int32.
    """
    height, width = rgba.shape[0], rgba.shape[1]
    face_count = faces.shape[0]
    # The inside of a mesh is seen only through its openings, so faces turned away are drawn only within the box of the
    # borders. At a vertex on no border the faces form a ring: each neighbour follows it once and precedes it once.
    ring = np.zeros(points.shape[0], np.int64)
    outside = np.empty(face_count, np.bool_)
    # Each attribute's plane over a face, as its value at the face's first corner and its change by x and by y.
    planes = np.zeros((face_count, 3, 6), np.float32)
    for index in range(face_count):
        a, b, c = faces[index, 0], faces[index, 1], faces[index, 2]
        ring[a] += b - c
        ring[b] += c - a
        ring[c] += a - b
        xb, yb = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1]
        xc, yc = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1]
        area = xb * yc - xc * yb
        outside[index] = area < 0  # y is down
        inverse = np.float32(1) / area if area != 0 else np.float32(0)
        for k in range(6):
            value = attributes[a, k]
            by_b, by_c = attributes[b, k] - value, attributes[c, k] - value
            planes[index, 0, k] = value
            planes[index, 1, k] = (by_b * yc - by_c * yb) * inverse
            planes[index, 2, k] = (by_c * xb - by_b * xc) * inverse
    whole = (0, 0, 2 * width - 1, 2 * height - 1)
    hole_x0, hole_y0, hole_x1, hole_y1 = np.float32(width), np.float32(height), np.float32(-1), np.float32(-1)
    for vertex in range(points.shape[0]):
        if ring[vertex] != 0:
            hole_x0, hole_x1 = min(hole_x0, points[vertex, 0]), max(hole_x1, points[vertex, 0])
            hole_y0, hole_y1 = min(hole_y0, points[vertex, 1]), max(hole_y1, points[vertex, 1])
    hole = (
        max(int(np.floor(2 * hole_x0)), 0),
        max(int(np.floor(2 * hole_y0)), 0),
        min(int(np.ceil(2 * hole_x1)) + 1, whole[2]),
        min(int(np.ceil(2 * hole_y1)) + 1, whole[3]),
    )

    depths = np.empty((2 * _BAND_ROWS, 2 * width), np.float32)
    owners = np.empty((2 * _BAND_ROWS, 2 * width), np.int32)
    values, rgb, total = np.empty(6, np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    half, quarter = np.float32(0.5), np.float32(0.25)
    for top in range(0, height, _BAND_ROWS):
        rows = min(_BAND_ROWS, height - top)
        depths[:] = np.float32(np.inf)
        owners[:] = -1
        for index in range(face_count):
            ya, yb, yc = points[faces[index, 0], 1], points[faces[index, 1], 1], points[faces[index, 2], 1]
            if max(ya, yb, yc) >= top - 1 and min(ya, yb, yc) <= top + rows:
                clip = whole if outside[index] else hole
                _fill_face(points, faces[index], index, clip, 2 * top, depths, owners)
        for row in range(rows):
            for column in range(width):
                s0, s1 = owners[2 * row, 2 * column], owners[2 * row, 2 * column + 1]
                s2, s3 = owners[2 * row + 1, 2 * column], owners[2 * row + 1, 2 * column + 1]
                if s0 < 0 and s1 < 0 and s2 < 0 and s3 < 0:
                    continue
                # A pixel within one face is shaded at its centre; one across faces by the mean of what its samples
                # see; but where a finger ends before another, its samples are shaded apart: halfway between a normal
                # to the left and one to the right lies one to the light.
                x, y = np.float32(column), np.float32(top + row)
                values[:] = 0
                covered, inside = 4, 0
                smooth = True
                if s0 == s1 and s0 == s2 and s0 == s3:
                    _add(points, faces, planes, s0, x, y, values)
                    inside = 0 if outside[s0] else 4
                else:
                    covered = 0
                    for sample in range(4):
                        index = owners[2 * row + (sample >> 1), 2 * column + (sample & 1)]
                        if index >= 0:
                            x_sample = x + half * np.float32(sample & 1) - quarter
                            y_sample = y + half * np.float32(sample >> 1) - quarter
                            _add(points, faces, planes, index, x_sample, y_sample, values)
                            covered += 1
                            inside += 0 if outside[index] else 1
                    for k in range(6):
                        values[k] /= np.float32(covered)
                    # The mean of unit normals is shorter than this when they are more than about 40 degrees apart.
                    length = values[0] * values[0] + values[1] * values[1] + values[2] * values[2]
                    smooth = length > np.float32(0.93**2) and (inside == 0 or inside == covered)
                if smooth:
                    shade_surface(values, inside == 0, rgb)
                else:
                    total[:] = 0
                    for sample in range(4):
                        index = owners[2 * row + (sample >> 1), 2 * column + (sample & 1)]
                        if index >= 0:
                            x_sample = x + half * np.float32(sample & 1) - quarter
                            y_sample = y + half * np.float32(sample >> 1) - quarter
                            values[:] = 0
                            _add(points, faces, planes, index, x_sample, y_sample, values)
                            shade_surface(values, outside[index], rgb)
                            for k in range(3):
                                total[k] += rgb[k]
                    for k in range(3):
                        rgb[k] = total[k] / np.float32(covered)
                for k in range(3):
                    rgba[top + row, column, k] = np.uint8(rgb[k] + half)
                rgba[top + row, column, 3] = (covered * 255 + 2) // 4


@kernel()
def _composite(image: Any, rgba: Any, opacity: Any) -> None:
    """Lay (H, W, 4) over (H, W, 3) in place."""
    for row in range(rgba.shape[0]):
        for column in range(rgba.shape[1]):
            alpha = opacity * np.float32(rgba[row, column, 3]) * np.float32(1 / 255)
            if alpha > 0:
                for channel in range(3):
                    below = np.float32(image[row, column, channel])
                    above = np.float32(rgba[row, column, channel])
                    image[row, column, channel] = np.uint8(below + (above - below) * alpha + np.float32(0.5))
