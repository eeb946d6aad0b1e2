"""A signed distance becomes a triangle mesh with a given number of vertices and one open boundary.

Marching cubes, then edge collapse against a sizing field (the wanted edge length at each place), then rounds of edge
flips, tangential smoothing and projection back onto the surface (Botsch & Kobbelt 2004, "A remeshing approach to
multiresolution modeling", with the vertex count fixed). Units are the caller's; the built-in hand uses millimetres.
Deterministic: no random numbers, ties broken by vertex number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from handmesh.errors import AssetError
from handmesh.system.extras import install_command

Floats = NDArray[np.float64]
Faces = NDArray[np.int64]
Field = Callable[[Floats], Floats]  # (n, 3) -> (n,)
Edge = tuple[int, int]


def surface_at_zero(distance: Field, low: Floats, high: Floats, voxel: float) -> tuple[Floats, Faces]:
    """Marching cubes over a box -> (n, 3) vertices, (m, 3) faces wound outwards, largest piece only.

    Where the solid leaves the box the surface stays open. Raises AssetError when scikit-image is not installed.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        raise AssetError(
            f"Generating the built-in hand needs scikit-image, which is not installed: {install_command('hand')}. "
            "(Using the hand that ships with handmesh does not need it.)"
        ) from None
    counts = np.ceil((high - low) / voxel).astype(int) + 1
    x, y, z = (start + voxel * np.arange(count) for start, count in zip(low, counts, strict=True))
    slab = np.stack(np.meshgrid([0.0], y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    values = np.stack([distance(slab + np.array([depth, 0, 0])).reshape(counts[1], counts[2]) for depth in x])
    vertices, faces, _, _ = marching_cubes(values.astype(np.float32), 0.0, spacing=(voxel,) * 3)
    vertices, faces = vertices.astype(np.float64) + low, faces.astype(np.int64)

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    links = sparse.coo_matrix((np.ones(len(edges)), edges.T), (len(vertices),) * 2)
    piece = connected_components(links, directed=False)[1]
    keep = piece == np.bincount(piece).argmax()
    faces = (np.cumsum(keep) - 1)[faces[keep[faces[:, 0]]]]
    vertices = vertices[keep]

    crossed = _face_crosses(vertices, faces)
    outward = distance(vertices[faces].mean(axis=1) + 0.25 * voxel * crossed / (_norm(crossed) + 1e-12))
    return vertices, (faces if np.median(outward) > 0 else faces[:, ::-1])


def collapse(
    vertices: Floats, faces: Faces, vertex_count: int, boundary_count: int, size: Floats
) -> tuple[Floats, Faces]:
    """Merge the relatively shortest edges until `vertex_count` vertices, `boundary_count` of them on the boundary.

    `size` (n,) is the wanted edge length at each vertex. Raises AssetError when no further edge can be merged.
    """
    mesh = _Collapsible(vertices, faces, size)
    while mesh.count > vertex_count:
        if not mesh.merge_next(vertex_count, boundary_count):
            raise AssetError(
                f"remeshing stopped at {mesh.count} vertices, wanted {vertex_count}: no edge can be merged"
            )
    if len(mesh.boundary) != boundary_count:
        raise AssetError(f"remeshing left {len(mesh.boundary)} boundary vertices, wanted {boundary_count}")
    return mesh.result()


class _Collapsible:
    """A triangle mesh that is being simplified: faces by vertex, and a queue of edges by relative length."""

    MAX_VALENCE = 8
    BOUNDARY_PENALTY = 1.15  # merging a boundary vertex with an inner one moves the boundary's neighbourhood

    def __init__(self, vertices: Floats, faces: Faces, size: Floats) -> None:
        self.position = vertices.copy()
        self.size = size.copy()
        self.face: dict[int, tuple[int, ...]] = {i: tuple(map(int, face)) for i, face in enumerate(faces)}
        self.faces_of: list[set[int]] = [set() for _ in vertices]
        for i, corners in self.face.items():
            for vertex in corners:
                self.faces_of[vertex].add(i)
        self.alive = np.ones(len(vertices), bool)
        self.count = len(vertices)
        self.version = np.zeros(len(vertices), int)
        edges = edge_faces(faces)
        self.boundary = {vertex for edge, owners in edges.items() if len(owners) == 1 for vertex in edge}
        self.queue: list[tuple[float, int, int, int, int]] = []
        for a, b in sorted(edges):
            self._push(a, b)

    def merge_next(self, vertex_count: int, boundary_count: int) -> bool:
        """Merge one edge; False when none is left that may be merged."""
        while self.queue:
            _, a, b, version_a, version_b = heapq.heappop(self.queue)
            if not (self.alive[a] and self.alive[b]):
                continue
            if self.version[a] != version_a or self.version[b] != version_b:
                continue
            shared = self.faces_of[a] & self.faces_of[b]
            on_boundary = len(shared) == 1
            if not shared or (on_boundary and len(self.boundary) <= boundary_count):
                continue
            if a in self.boundary and b in self.boundary and not on_boundary:
                continue
            if b in self.boundary and a not in self.boundary:
                a, b = b, a
            if self._merge(a, b, shared):
                return True
        return False

    def _merge(self, keep: int, drop: int, shared: set[int]) -> bool:
        around_keep, around_drop = self._neighbours(keep), self._neighbours(drop)
        if len(around_keep & around_drop) != len(shared):  # link condition: the surface stays a surface
            return False
        if len(around_keep | around_drop) - 2 > self.MAX_VALENCE + 2:
            return False
        pinned = keep in self.boundary and drop not in self.boundary
        target = self.position[keep] if pinned else 0.5 * (self.position[keep] + self.position[drop])
        if any(self._turns_over(v, face, target) for v in (keep, drop) for face in self.faces_of[v] - shared):
            return False
        for face in shared:
            for vertex in self.face.pop(face):
                self.faces_of[vertex].discard(face)
        for face in self.faces_of[drop]:
            self.face[face] = tuple(keep if vertex == drop else vertex for vertex in self.face[face])
            self.faces_of[keep].add(face)
        self.faces_of[drop] = set()
        self.alive[drop] = False
        self.boundary.discard(drop)
        self.position[keep] = target
        if not pinned:
            self.size[keep] = 0.5 * (self.size[keep] + self.size[drop])
        self.count -= 1
        self.version[keep] += 1
        for vertex in sorted(self._neighbours(keep)):
            self._push(keep, vertex)
        return True

    def _turns_over(self, vertex: int, face: int, target: Floats) -> bool:
        """Would moving the vertex there turn the face by more than 75 degrees, or flatten it to nothing?"""
        before = [self.position[corner] for corner in self.face[face]]
        after = [target if corner == vertex else self.position[corner] for corner in self.face[face]]
        n0, n1 = (_cross(q[1] - q[0], q[2] - q[0]) for q in (before, after))
        length0, length1 = float(np.sqrt(n0 @ n0)), float(np.sqrt(n1 @ n1))
        return bool(length1 < 1e-6 or n0 @ n1 < 0.25 * length0 * length1)

    def _push(self, a: int, b: int) -> None:
        gap = self.position[a] - self.position[b]
        cost = float(np.sqrt(gap @ gap)) / (0.5 * (self.size[a] + self.size[b]))
        if (a in self.boundary) != (b in self.boundary):
            cost *= self.BOUNDARY_PENALTY
        heapq.heappush(self.queue, (cost, a, b, int(self.version[a]), int(self.version[b])))

    def _neighbours(self, vertex: int) -> set[int]:
        return {corner for face in self.faces_of[vertex] for corner in self.face[face]} - {vertex}

    def result(self) -> tuple[Floats, Faces]:
        number = np.cumsum(self.alive) - 1
        return self.position[self.alive], number[np.array(list(self.face.values()))]


def relax(
    vertices: Floats,
    faces: Faces,
    sizing: Field,
    project: Callable[[Floats, NDArray[np.bool_]], Floats],
    rounds: int,
    pinned: dict[int, Floats] | None = None,
) -> tuple[Floats, Faces]:
    """Even out the mesh: edge flips, then each vertex towards the centre of its faces, within the surface.

    `project(points, is_boundary)` brings points back onto the surface and the boundary onto its curve. `pinned` keeps
    vertices where they are told. The last rounds flip nothing, so that the smoothing settles.
    """
    pinned = pinned or {}
    for round_number in range(rounds):
        if round_number < rounds - 3:
            faces = flip_edges(vertices, faces)
        edges = edge_faces(faces)
        boundary_neighbours: dict[int, list[int]] = {}
        for (a, b), owners in edges.items():
            if len(owners) == 1:
                boundary_neighbours.setdefault(a, []).append(b)
                boundary_neighbours.setdefault(b, []).append(a)
        is_boundary = np.zeros(len(vertices), bool)
        is_boundary[list(boundary_neighbours)] = True
        crossed = _face_crosses(vertices, faces)
        weight = 0.5 * _norm(crossed)[:, 0] / sizing(vertices)[faces].mean(axis=1) ** 2
        centre = vertices[faces].mean(axis=1)
        pull, total, normal = np.zeros_like(vertices), np.zeros(len(vertices)), np.zeros_like(vertices)
        for corner in range(3):
            np.add.at(pull, faces[:, corner], weight[:, None] * centre)
            np.add.at(total, faces[:, corner], weight)
            np.add.at(normal, faces[:, corner], crossed)
        normal /= _norm(normal) + 1e-12
        step = pull / total[:, None] - vertices
        step -= (step * normal).sum(axis=1, keepdims=True) * normal
        for vertex, ends in boundary_neighbours.items():
            step[vertex] = vertices[ends].mean(axis=0) - vertices[vertex]
        vertices = project(vertices + 0.55 * step, is_boundary)
        for vertex, place in pinned.items():
            vertices[vertex] = place
    return vertices, faces


def flip_edges(vertices: Floats, faces: Faces, passes: int = 2) -> Faces:
    """Flip edges for fatter triangles (Delaunay), six neighbours per vertex and flatter creases, in that order."""
    triangles = [list(map(int, face)) for face in faces]
    for _ in range(passes):
        edges = edge_faces(triangles)
        valence = np.zeros(len(vertices), int)
        wanted = np.full(len(vertices), 6)
        for edge, owners in edges.items():
            for vertex in edge:
                valence[vertex] += 1
                if len(owners) == 1:
                    wanted[vertex] = 4
        present, flipped = set(edges), 0
        touched: set[int] = set()
        for (a, b), owners in edges.items():
            if len(owners) != 2 or touched & set(owners) or valence[a] <= 3 or valence[b] <= 3:
                continue
            first, second = triangles[owners[0]], triangles[owners[1]]
            c = next(v for v in first if v not in (a, b))
            d = next(v for v in second if v not in (a, b))
            if c == d or (min(c, d), max(c, d)) in present:
                continue
            if first[(first.index(a) + 1) % 3] != b:
                a, b = b, a
            if _flip_gain(vertices, a, b, c, d, valence, wanted) <= 0.12:
                continue
            triangles[owners[0]], triangles[owners[1]] = [c, a, d], [d, b, c]
            touched |= set(owners)
            present.discard((min(a, b), max(a, b)))
            present.add((min(c, d), max(c, d)))
            valence[[a, b]] -= 1
            valence[[c, d]] += 1
            flipped += 1
        if not flipped:
            break
    return np.array(triangles)


def _flip_gain(
    vertices: Floats, a: int, b: int, c: int, d: int, valence: NDArray[np.int64], wanted: NDArray[np.int64]
) -> float:
    """How much better the pair (c, a, d), (d, b, c) is than (a, b, c), (b, a, d); minus infinity when it folds."""
    pa, pb, pc, pd = vertices[[a, b, c, d]]
    old = [_cross(pb - pa, pc - pa), _cross(pa - pb, pd - pb)]
    new = [_cross(pa - pc, pd - pc), _cross(pb - pd, pc - pd)]
    old_size, new_size = ([float(np.sqrt(n @ n)) for n in normals] for normals in (old, new))
    if min(new_size) < 0.15 * min(old_size):
        return -np.inf
    o0, o1, n0, n1 = (n / (size + 1e-12) for n, size in zip(old + new, old_size + new_size, strict=True))
    mean = o0 + o1
    mean /= np.sqrt(mean @ mean) + 1e-12
    if min(n0 @ mean, n1 @ mean) < 0.5:
        return -np.inf
    beyond_delaunay = _angle(pa, pc, pb) + _angle(pa, pd, pb) - np.pi
    before = sum((valence[v] - wanted[v]) ** 2 for v in (a, b, c, d))
    after = sum((valence[v] + change - wanted[v]) ** 2 for v, change in ((a, -1), (b, -1), (c, 1), (d, 1)))
    return float(beyond_delaunay + 0.12 * (before - after) + 0.8 * (n0 @ n1 - o0 @ o1))


def neighbours(faces: Faces, vertex_count: int) -> list[list[int]]:
    """Vertices joined to each vertex by an edge, in ascending order."""
    around: list[set[int]] = [set() for _ in range(vertex_count)]
    for a, b in edge_faces(faces):
        around[a].add(b)
        around[b].add(a)
    return [sorted(each) for each in around]


def edge_faces(faces: NDArray[np.integer] | list[list[int]]) -> dict[Edge, list[int]]:
    """Undirected edges (smaller vertex first) -> the faces that share them, in order of first appearance."""
    edges: dict[Edge, list[int]] = {}
    for number, face in enumerate(np.asarray(faces).tolist()):
        for a, b in zip(face, face[1:] + face[:1], strict=True):
            edges.setdefault((min(a, b), max(a, b)), []).append(number)
    return edges


def _face_crosses(vertices: Floats, faces: Faces) -> Floats:
    p, q, r = (vertices[faces[:, corner]] for corner in range(3))
    return np.cross(q - p, r - p)


def _norm(vectors: Floats) -> Floats:
    return np.linalg.norm(vectors, axis=-1, keepdims=True)


def _cross(a: Floats, b: Floats) -> Floats:
    """np.cross spends most of its time on axes; this is called a million times on single vectors."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _angle(p: Floats, corner: Floats, r: Floats) -> float:
    x, y = p - corner, r - corner
    return float(np.arccos(np.clip(x @ y / (np.sqrt((x @ x) * (y @ y)) + 1e-12), -1, 1)))
