import numpy as np
import pytest
import trimesh

from handmesh.builtin_hand import remesh
from handmesh.errors import AssetError

RADIUS = 9.7


def dome(points: np.ndarray) -> np.ndarray:
    """A ball; the grid below cuts it open at z = -4."""
    return np.linalg.norm(points, axis=-1) - RADIUS


@pytest.fixture(scope="module")
def surface() -> tuple[np.ndarray, np.ndarray]:
    return remesh.surface_at_zero(dome, np.array([-12.0, -12, -4]), np.array([12.0, 12, 12]), 1.0)


def boundary_of(faces: np.ndarray) -> int:
    return sum(len(owners) == 1 for owners in remesh.edge_faces(faces).values())


def test_marching_cubes_faces_outwards_and_opens_where_the_box_cuts(surface):
    vertices, faces = surface
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    assert ((normals * vertices[faces[:, 0]]).sum(axis=1) >= -1e-9).all()
    assert boundary_of(faces) > 0
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), RADIUS, atol=0.1)


@pytest.mark.parametrize(("count", "boundary"), [(100, 18), (61, 15)])
def test_remeshing_gives_exactly_the_counts_asked_for(surface, count, boundary):
    vertices, faces = remesh.collapse(*surface, count, boundary, np.full(len(surface[0]), 3.0))

    def project(points: np.ndarray, is_boundary: np.ndarray) -> np.ndarray:
        points = points * (RADIUS / np.linalg.norm(points, axis=1, keepdims=True))
        rim = points[is_boundary] * [1, 1, 0]
        points[is_boundary] = rim * np.sqrt(RADIUS**2 - 16) / np.linalg.norm(rim, axis=1, keepdims=True) - [0, 0, 4]
        return points

    top = np.array([0.0, 0.0, RADIUS])
    pinned = int(np.linalg.norm(vertices - top, axis=1).argmin())
    vertices, faces = remesh.relax(vertices, faces, lambda p: np.full(len(p), 3.0), project, 8, {pinned: top})
    edges = remesh.edge_faces(faces)
    assert len(vertices) == count
    assert boundary_of(faces) == boundary
    assert count - len(edges) + len(faces) == 1  # still a disc
    assert max(len(owners) for owners in edges.values()) == 2
    np.testing.assert_array_equal(vertices[pinned], top)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_winding_consistent
    assert (mesh.face_normals * mesh.triangles_center).sum(axis=1).min() > 0
    sides = mesh.edges_unique_length
    assert sides.max() < 4 * sides.min()


def test_impossible_counts_are_refused(surface):
    size = np.ones(len(surface[0]))
    with pytest.raises(AssetError, match="no edge can be merged"):
        remesh.collapse(*surface, 20, 30, size)
    with pytest.raises(AssetError, match="boundary vertices, wanted 4"):
        remesh.collapse(*surface, 100, 4, size)


def test_flipping_prefers_the_short_diagonal():
    kite = np.array([[-3.0, 0, 0], [0, -1, 0], [3, 0, 0], [0, 1, 0]])
    # Surrounded by more vertices, so that none of the four would lose too many neighbours.
    ring = np.array([[6 * np.cos(a), 4 * np.sin(a), 0] for a in np.linspace(0, 2 * np.pi, 8, endpoint=False)])
    vertices = np.vstack([kite, ring])
    faces = np.vstack([[[0, 1, 2], [0, 2, 3]], _annulus()])
    flipped = {tuple(sorted(face)) for face in remesh.flip_edges(vertices, faces, passes=1).tolist()}
    assert {(0, 1, 3), (1, 2, 3)} <= flipped


def _annulus() -> np.ndarray:
    """Triangles between the kite (0..3: left, bottom, right, top) and the ring of eight around it (4..11)."""
    inner = [2, 3, 3, 0, 0, 1, 1, 2]  # nearest corner of the kite to each ring vertex
    faces = []
    for i in range(8):
        here, after = 4 + i, 4 + (i + 1) % 8
        faces.append([inner[i], here, after])
        if inner[i] != inner[(i + 1) % 8]:
            faces.append([inner[i], after, inner[(i + 1) % 8]])
    return np.array(faces)
