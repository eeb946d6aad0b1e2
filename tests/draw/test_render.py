"""Drawing: where a mesh and a skeleton land, what hides what, and that nothing fed to the renderer breaks it."""

import importlib.util
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.draw import render, skeleton
from handmesh.errors import ConfigError, ImageError
from handmesh.files.image import encode_image
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import BONES, JOINT_NAMES, builtin_hand

WHITE = (255, 255, 255)


def rectangle(x0: float, y0: float, x1: float, y1: float, depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two triangles that face the viewer: counter-clockwise seen from the front, with y down."""
    vertices = np.array([[x0, y0, depth], [x0, y1, depth], [x1, y1, depth], [x1, y0, depth]])
    return vertices, np.array([[0, 1, 2], [0, 2, 3]])


def hand_in_image(scale: float = 900.0, center: tuple[float, float] = (160.0, 130.0)) -> tuple[np.ndarray, ...]:
    """The built-in hand, palm to the viewer, as pixels; and its normals and faces."""
    hand = builtin_hand()
    # Fingers (-x) point up, the palm (-y) to the viewer (-z), the thumb (+z) to the left: a rotation, det = +1.
    axes = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    axes[2] *= np.linalg.det(axes)
    vertices = (hand.v_template - hand.v_template.mean(axis=0)) @ axes.T
    return vertices * scale + [*center, 0.0], hand.faces, vertex_normals(vertices, hand.faces)


def coverage(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., 3].astype(float) / 255


def centroid(weights: np.ndarray) -> np.ndarray:
    y, x = np.indices(weights.shape)
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize(
    "box", [(2.0, 3.5, 10.5, 8.0), (2.5, 2.5, 3.5, 3.5), (0.0, 0.0, 19.5, 11.5), (7.0, -5.0, 30.0, 6.0)]
)
def test_a_rectangle_covers_its_area(box):
    """Pixel (i, j) is the square of side one around (i, j). Edges on half pixels make the samples' answer exact."""
    x0, y0, x1, y1 = box
    width, height = 20, 12
    found = coverage(render.render_mesh(*rectangle(*box), (width, height)))
    along_x = np.clip(np.minimum(x1, np.arange(width) + 0.5) - np.maximum(x0, np.arange(width) - 0.5), 0, 1)
    along_y = np.clip(np.minimum(y1, np.arange(height) + 0.5) - np.maximum(y0, np.arange(height) - 0.5), 0, 1)
    np.testing.assert_allclose(found, along_y[:, None] * along_x, atol=0.003)  # 1/4 is 64 of 255


def test_a_moved_mesh_moves_its_picture():
    vertices, faces, normals = hand_in_image()
    at_rest = render.render_mesh(vertices, faces, (320, 260), normals=normals)
    for step in ((5, -3), (-11, 8)):
        moved = render.render_mesh(vertices + np.array([*step, 0]), faces, (320, 260), normals=normals)
        np.testing.assert_array_equal(moved, np.roll(at_rest, step[::-1], axis=(0, 1)))
    half = render.render_mesh(vertices + np.array([0.5, 0.25, 0]), faces, (320, 260), normals=normals)
    shift = centroid(coverage(half)) - centroid(coverage(at_rest))
    np.testing.assert_allclose(shift, [0.5, 0.25], atol=0.1)  # the wrist is a straight edge: it moves by samples


def test_a_sphere_is_a_disc():
    sphere = trimesh.creation.icosphere(subdivisions=4)
    center, radius = np.array([40.3, 31.8]), 25.6
    vertices = np.asarray(sphere.vertices) * radius + [*center, 7.0]
    found = render.render_mesh(vertices, np.asarray(sphere.faces)[:, ::1], (80, 64), color=WHITE)
    alpha = coverage(found)
    y, x = np.indices(alpha.shape)
    distance = np.hypot(x - center[0], y - center[1])
    assert (alpha[distance < radius - 0.8] == 1).all()
    assert (alpha[distance > radius + 0.71] == 0).all()
    assert alpha.sum() == pytest.approx(np.pi * radius**2, rel=0.005)
    np.testing.assert_allclose(centroid(alpha), center, atol=0.02)
    # Lit from above on the left, and not so dark anywhere that it could be the inside.
    shades = found[..., 0].astype(int)
    assert shades[20, 28] > shades[45, 54] + 50
    assert shades[alpha == 1].min() > 50


@pytest.mark.parametrize("scale", [300.0, 777.0, 1100.0])
def test_a_hand_covers_the_union_of_its_faces(scale):
    """The plain definition: a sample is covered when it is on the inner side of all three edges of some face."""
    width, height = 320, 260
    vertices, faces, normals = hand_in_image(scale, (161.3, 128.9))
    found = render.render_mesh(vertices, faces, (width, height), normals=normals)
    x = np.arange(2 * width) / 2 - 0.25  # two samples to a pixel's side
    y = np.arange(2 * height) / 2 - 0.25
    covered = np.zeros((2 * height, 2 * width), bool)
    for corners in vertices[faces][:, :, :2]:
        rows = slice(*np.searchsorted(y, [corners[:, 1].min(), corners[:, 1].max()]))
        columns = slice(*np.searchsorted(x, [corners[:, 0].min(), corners[:, 0].max()]))
        sides = [
            (end[0] - start[0]) * (y[rows, None] - start[1]) - (end[1] - start[1]) * (x[columns] - start[0])
            for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)
        ]
        covered[rows, columns] |= (np.min(sides, axis=0) >= 0) | (np.max(sides, axis=0) <= 0)
    wanted = covered.reshape(height, 2, width, 2).mean(axis=(1, 3))
    assert np.abs(coverage(found) - wanted).max() < 0.26  # one sample of four, where an edge passes through it
    assert (np.abs(coverage(found) - wanted) > 0.1).sum() <= 2
    rows, columns = np.nonzero(found[..., 3])
    drawn_box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    true_box = np.concatenate([vertices[:, :2].min(axis=0), vertices[:, :2].max(axis=0)])
    assert np.abs(drawn_box - true_box).max() < 1.0


def test_resizing_and_padding_the_points_resizes_and_pads_the_picture():
    vertices, faces, normals = hand_in_image()
    small = render.render_mesh(vertices, faces, (320, 260), normals=normals)
    # Pixel centres at integers: doubling the image sends x to 2 x + 0.5.
    doubled = vertices * 2 + [0.5, 0.5, 0]
    large = coverage(render.render_mesh(doubled, faces, (640, 520), normals=normals))
    halved = large.reshape(260, 2, 320, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(centroid(halved), centroid(coverage(small)), atol=0.1)
    assert np.abs(halved - coverage(small)).max() <= 0.5
    padded = render.render_mesh(vertices + np.array([30, 12, 0]), faces, (400, 300), normals=normals)
    np.testing.assert_array_equal(padded[12:272, 30:350], small)


def test_neighbours_leave_no_gap_and_cut_nothing():
    """A fan of thin triangles around a point covers the whole square, whatever the angles."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        center = rng.uniform(10, 30, 2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 60))
        angles = np.concatenate([angles, np.linspace(0, 2 * np.pi, 8, endpoint=False)])
        angles.sort()
        rim = center + 80 * np.stack([np.cos(angles), -np.sin(angles)], axis=-1)
        vertices = np.column_stack([np.vstack([center, rim]), np.zeros(len(rim) + 1)])
        ring = np.arange(1, len(rim) + 1)
        faces = np.column_stack([np.zeros_like(ring), ring, np.roll(ring, -1)])
        assert (render.render_mesh(vertices, faces, (40, 40))[..., 3] == 255).all()


def test_the_nearer_hides_the_farther():
    near, faces = rectangle(4, 4, 20, 20, depth=1.0)
    far, _ = rectangle(10, 10, 30, 30, depth=2.0)
    facing = np.tile([0.0, 0.0, -1.0], (4, 1))
    red = render.ImageMesh(near, faces, facing, (255, 0, 0))
    blue = render.ImageMesh(far, faces, facing, (0, 0, 255))
    for meshes in ([red, blue], [blue, red]):
        picture = render.render_meshes(meshes, (40, 40)).astype(int)
        assert picture[15, 15, 0] > picture[15, 15, 2] + 60
        assert picture[25, 25, 2] > picture[25, 25, 0] + 60


def test_crossing_surfaces_cut_each_other():
    tilted, faces = rectangle(0, 0, 39, 39)
    tilted[:, 2] = tilted[:, 0]  # deeper to the right
    flat, _ = rectangle(0, 0, 39, 39, depth=20.0)
    facing = np.tile([0.0, 0.0, -1.0], (4, 1))
    picture = render.render_meshes(
        [render.ImageMesh(tilted, faces, facing, (255, 0, 0)), render.ImageMesh(flat, faces, facing, (0, 0, 255))],
        (40, 40),
    ).astype(int)
    assert (picture[5:35, 2:19, 0] > picture[5:35, 2:19, 2]).all()
    assert (picture[5:35, 22:37, 2] > picture[5:35, 22:37, 0]).all()


def test_the_inside_shows_only_through_an_opening():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = np.asarray(sphere.vertices) * 20 + [32, 32, 0], np.asarray(sphere.faces)
    whole = render.render_mesh(vertices, faces, (64, 64), normals=np.asarray(sphere.vertices))
    front = faces[sphere.face_normals[:, 2] < 0]
    np.testing.assert_array_equal(whole, render.render_mesh(vertices, front, (64, 64), normals=sphere.vertices))
    open_wrist = render.render_mesh(vertices, faces[sphere.triangles_center[:, 2] > -0.5], (64, 64), color=WHITE)
    assert open_wrist[32, 32, 3] == 255
    assert 40 < open_wrist[32, 32, 0] < 55


def test_colors_belong_to_vertices():
    vertices, faces = rectangle(0, 0, 31, 31)
    facing = np.tile([0.0, 0.0, -1.0], (4, 1))
    colors = np.array([[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]])
    picture = render.render_mesh(vertices, faces, (32, 32), normals=facing, color=colors).astype(int)
    redness = picture[:, 2:30, 0] - picture[:, 2:30, 2]
    assert (np.diff(redness, axis=1) < 0).all()  # red on the left, blue on the right, evenly between


@pytest.mark.parametrize(
    ("value", "axis"), [*itertools.product([np.nan, np.inf, -np.inf, -1e31, 1e39], [0, 1, 2]), (1e7, 0), (-1e20, 1)]
)
def test_a_vertex_that_cannot_be_drawn_takes_only_its_faces(value, axis):
    vertices, faces, normals = hand_in_image(700.0)
    broken = vertices.copy()
    broken[100, axis] = value
    found = render.render_mesh(broken, faces, (320, 260), normals=normals)
    kept = faces[(faces != 100).all(axis=1)]
    np.testing.assert_array_equal(found, render.render_mesh(vertices, kept, (320, 260), normals=normals))
    render.render_mesh(broken, faces, (320, 260))  # normals from the broken vertices


def test_nothing_to_draw_is_an_empty_picture():
    vertices, faces, _ = hand_in_image()
    for points, triangles in (
        (vertices, faces[:0]),
        (vertices * np.nan, faces),
        (vertices + np.array([5000, 0, 0]), faces),
        (vertices - [0, 5000, 0], faces),
        (vertices * 0, faces),
        (vertices * [1, 0, 1], faces),
    ):
        assert not render.render_mesh(points, triangles, (64, 48))[..., 3].any()
    assert render.render_meshes([], (3, 2)).shape == (2, 3, 4)


def test_any_numbers_are_drawn_in_bounded_time():
    rng = np.random.default_rng(5)
    faces = builtin_hand().faces
    render.render_mesh(np.zeros((778, 3)), faces, (8, 8))  # compiled
    start = time.thread_time()
    for spread in (1e-30, 1e-3, 1.0, 50.0, 1e3, 9e5, 1e12):
        vertices = rng.normal(0, spread, (778, 3)) + np.array([160, 120, 0])
        picture = render.render_mesh(vertices, faces, (320, 240))
        assert picture.shape == (240, 320, 4)
    assert time.thread_time() - start < 5


def test_overlay_touches_only_the_meshs_box():
    image = np.random.default_rng(6).integers(0, 256, (260, 320, 3), dtype=np.uint8)
    before = image.copy()
    vertices, faces, normals = hand_in_image(600.0)
    alone = render.render_mesh(vertices, faces, (320, 260), normals=normals)
    drawn = render.overlay(image, vertices, faces, normals=normals, opacity=1.0)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(drawn[alone[..., 3] == 0], image[alone[..., 3] == 0])
    np.testing.assert_array_equal(drawn[alone[..., 3] == 255], alone[alone[..., 3] == 255][:, :3])
    np.testing.assert_array_equal(render.overlay(image, vertices, faces, opacity=0.0), image)
    half = render.overlay(image, vertices, faces, normals=normals, opacity=0.5).astype(float)
    mixed = (image.astype(float) + drawn) / 2
    assert np.abs(half - mixed)[alone[..., 3] == 255].max() <= 1


def test_overlay_accepts_any_memory_layout():
    image = np.random.default_rng(7).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    vertices, faces, _ = hand_in_image(400.0, (60, 45))
    wanted = render.overlay(image, vertices, faces)
    read_only = image.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(render.overlay(read_only, vertices, faces), wanted)
    np.testing.assert_array_equal(render.overlay(np.asfortranarray(image), vertices, faces.astype(np.int64)), wanted)
    np.testing.assert_array_equal(render.overlay(image[:, ::-1][:, ::-1], vertices, faces.astype(np.uint32)), wanted)


def test_threads_draw_at_the_same_time():
    scenes = [hand_in_image(500.0 + 150 * i) for i in range(4)]

    def draw(i: int) -> np.ndarray:
        vertices, faces, normals = scenes[i % 4]
        return render.render_mesh(vertices, faces, (320, 260), normals=normals)

    alone = [draw(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for i, picture in enumerate(pool.map(draw, range(24))):
            np.testing.assert_array_equal(picture, alone[i % 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices_image": np.zeros((4, 2))}, r"\(N, 3\)"),
        ({"faces": np.array([[0, 1, 4]])}, "there are 4"),
        ({"faces": np.array([[0, 1, -1]])}, "there are 4"),
        ({"faces": np.array([[0.0, 1.0, 2.0]])}, "integers"),
        ({"normals": np.zeros((3, 3))}, "Normals"),
        ({"color": (1, 2)}, "color"),
        ({"size": (0, 5)}, "size"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    vertices, faces = rectangle(0, 0, 5, 5)
    arguments = {"vertices_image": vertices, "faces": faces, "size": (8, 8), **change}
    with pytest.raises(ValueError, match=message):
        render.render_mesh(**arguments)


def test_wrong_images_are_named():
    vertices, faces = rectangle(0, 0, 5, 5)
    with pytest.raises(ImageError, match="float64"):
        render.overlay(np.zeros((8, 8, 3)), vertices, faces)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"\(8, 8\)"):
        skeleton.draw_skeleton(np.zeros((8, 8), np.uint8), np.zeros((21, 2)))
    with pytest.raises(ValueError, match="Opacity"):
        render.overlay(np.zeros((8, 8, 3), np.uint8), vertices, faces, opacity=2.0)
    with pytest.raises(ValueError, match=r"\(20, 2\)"):
        skeleton.draw_skeleton(np.zeros((8, 8, 3), np.uint8), np.zeros((20, 2)))


def spread_keypoints() -> np.ndarray:
    """A flat hand: the wrist at the bottom, five straight fingers."""
    keypoints = np.zeros((21, 2))
    keypoints[0] = (150, 250)
    for finger, angle in enumerate(np.linspace(-1.2, 1.2, 5)):
        for joint in range(4):
            reach = 90 + 40 * joint
            keypoints[1 + 4 * finger + joint] = (150 + reach * np.sin(angle), 250 - reach * np.cos(angle))
    return keypoints


def test_a_skeletons_joints_and_bones_are_where_the_keypoints_are():
    image = np.full((300, 420, 3), 128, np.uint8)
    keypoints = spread_keypoints() + np.array([60, 20])
    drawn = skeleton.draw_skeleton(image, keypoints)
    assert (image == 128).all()
    for index, name in enumerate(JOINT_NAMES):
        x, y = keypoints[index].round().astype(int)
        wanted = skeleton.FINGER_COLORS.get(name.split("_")[0], skeleton.WRIST_COLOR)
        assert np.abs(drawn[y, x].astype(int) - wanted).max() <= 2
    for parent, joint in BONES:
        x, y = ((keypoints[parent] + keypoints[joint]) / 2).round().astype(int)
        assert np.abs(drawn[y, x].astype(int) - drawn[tuple(keypoints[joint].round().astype(int)[::-1])]).max() < 40
    changed = (drawn != 128).any(axis=2)
    np.testing.assert_allclose(
        centroid(changed[:, ::-1].astype(float))[0], 419 - 210, atol=1
    )  # symmetric about x = 210


def test_bones_are_wider_on_a_larger_hand():
    keypoints = spread_keypoints()
    small = skeleton.draw_skeleton(np.zeros((400, 400, 3), np.uint8), keypoints * 0.3)
    large = skeleton.draw_skeleton(np.zeros((1200, 1200, 3), np.uint8), keypoints * 3)
    # Ten times the length and a fixed number of pixels wide would be ten times the area.
    assert large.any(axis=2).sum() > 20 * small.any(axis=2).sum()


def test_bones_are_as_wide_as_is_asked_for():
    """On a panorama too: they ended at 255 pixels."""
    keypoints, visible = np.full((21, 2), 300.0), np.arange(21) < 2  # one bone, from edge to edge
    keypoints[1, 0] = 2300
    for width in (9.0, 120.0, 400.0, 1e6):
        drawn = skeleton.draw_skeleton(np.zeros((600, 2600, 3), np.uint8), keypoints, visible=visible, width=width)
        assert (drawn[:, 1300] > 40).any(axis=1).sum() == pytest.approx(min(width, 600), abs=5)


def test_hidden_and_senseless_joints_are_left_out():
    image = np.zeros((300, 420, 3), np.uint8)
    keypoints = spread_keypoints()
    assert not skeleton.draw_skeleton(image, keypoints, visible=np.zeros(21, bool)).any()
    thumb = np.zeros(21, bool)
    thumb[1:5] = True
    only_thumb = skeleton.draw_skeleton(image, keypoints, visible=thumb)
    assert only_thumb[250 - 60 : 250, :60].any()
    assert not only_thumb[:, 200:].any()
    for value in (np.nan, np.inf, 1e12):
        broken = keypoints.copy()
        broken[~thumb] = value
        np.testing.assert_array_equal(skeleton.draw_skeleton(image, broken), only_thumb)
    for value in (-9e5, 9e5):  # far outside, and drawn as far as the picture goes
        broken = keypoints.copy()
        broken[4] = (value, value)
        skeleton.draw_skeleton(image, broken, width=3)
    assert skeleton.draw_skeleton(image, np.column_stack([keypoints, np.ones(21)]), width=1e6).any()


def test_pytorch3d_is_asked_for_by_name(tmp_path):
    if importlib.util.find_spec("pytorch3d"):
        pytest.skip("PyTorch3D is installed: the next test uses it")
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_image(np.zeros((32, 32, 3), np.uint8), ".png"))
    arguments = ["predict", str(photo), "--out", str(tmp_path / "out"), "--renderer", "pytorch3d"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "INSTALL.md" in str(refused.exception)
    assert not (tmp_path / "out").exists(), "refused before anything is computed"


@pytest.mark.parametrize("into_the_wrist", [False, True])
@pytest.mark.parametrize("size", [(320, 260), (260, 320)])
def test_pytorch3d_draws_the_same(size, into_the_wrist):
    pytest.importorskip(
        "pytorch3d",
        reason="PyTorch3D is not installed; build it from source: "
        "https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md",
    )
    from handmesh.draw.pytorch3d import draw_box

    vertices, faces, normals = hand_in_image(900.0, (size[0] / 2, size[1] / 2))
    if into_the_wrist:  # about x: what was down comes to the viewer
        vertices, normals = (points[:, [0, 2, 1]] * [1, 1, -1] for points in (vertices, normals))
        vertices[:, 1] += size[1] / 2 - vertices[:, 1].mean()
    ours = render.render_mesh(vertices, faces, size, normals=normals).astype(int)
    scene = render.drawable_scene([render.ImageMesh(vertices, faces, normals)])
    theirs = draw_box(scene, (0, 0, *size)).astype(int)
    assert np.mean(ours[..., 3] != theirs[..., 3]) < 0.002
    both = (ours[..., 3] == 255) & (theirs[..., 3] == 255)
    assert np.abs(ours - theirs)[both].mean() < 2


def test_palette_tells_fingers_apart():
    colors = [*skeleton.FINGER_COLORS.values(), skeleton.WRIST_COLOR]
    for one, two in itertools.combinations(colors, 2):
        assert np.linalg.norm(np.subtract(one, two)) > 60
