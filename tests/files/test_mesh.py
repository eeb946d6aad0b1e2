"""Every output format, read back by a program that is not ours."""

import base64
import html
import io
import json
import re
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pygltflib
import pytest
import trimesh
from browser import CHROMIUM, Page, chromium
from scipy.spatial.transform import Rotation

import handmesh
from handmesh.cli.shell import FORMATS
from handmesh.errors import ExportError
from handmesh.files.mesh import MESH_SUFFIXES, MeshHand, encode_hands, notebook_html, write_hands
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import BONES, JOINT_NAMES, Handedness, builtin_hand


def joints_of(side: Handedness) -> np.ndarray:
    hand = builtin_hand(side)
    return np.concatenate([hand.J, hand.v_template[[744, 320, 443, 555, 672]]])


def hand(side: Handedness = Handedness.RIGHT, **changes: object) -> MeshHand:
    model = builtin_hand(side)
    values: dict[str, object] = {
        "vertices": model.v_template.astype(np.float32),
        "faces": model.faces,
        "joints": joints_of(side).astype(np.float32),
        "handedness": side,
        "name": f"{side} hand",
        "translation": (0.1, -0.05, 0.6),
        "color": (200, 100, 50),
        "extra": {
            "betas": np.linspace(-1, 1, 10, dtype=np.float32),
            "score": 0.75,
            "box": (1.0, 2.0, 30.5, 40.25),
            "source": "given box",
            "intrinsics": {"K": np.diag([600.0, 600.0, 1.0]), "from": "EXIF"},
        },
        **changes,
    }
    return MeshHand(**values)  # type: ignore[arg-type]


BOTH = [
    hand(Handedness.RIGHT),
    hand(Handedness.LEFT, color=np.full((778, 3), (10, 200, 90)), translation=(-0.2, 0, 0.5)),
]
Y_UP = np.array([1.0, -1.0, -1.0])


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Positive when faces are counter-clockwise seen from outside (divergence theorem, about the middle)."""
    corners = (vertices - vertices.mean(axis=0))[faces]
    return float(np.linalg.det(corners).sum() / 6)


def read_trimesh(suffix: str, hands: list[MeshHand]) -> trimesh.Trimesh:
    kind = suffix.removeprefix(".")
    return trimesh.load(io.BytesIO(encode_hands(hands, suffix)), file_type=kind, process=False, force="mesh")


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
@pytest.mark.parametrize("side", list(Handedness))
def test_a_mesh_is_y_up_and_wound_outward(suffix, side):
    one = hand(side)
    mesh = read_trimesh(suffix, [one])
    wanted = (one.vertices + np.asarray(one.translation)) * Y_UP
    assert len(mesh.faces) == 1538
    # A reader may renumber vertices; corners of faces, in order, are the mesh.
    np.testing.assert_allclose(np.asarray(mesh.vertices)[mesh.faces], wanted[one.faces], atol=2e-6)
    assert signed_volume(np.asarray(mesh.vertices), np.asarray(mesh.faces)) > 1e-4  # cubic metres: a tenth of a litre


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_two_hands_are_both_there(suffix):
    mesh = read_trimesh(suffix, BOTH)
    assert len(mesh.faces) == 2 * 1538
    wanted = [((one.vertices + np.asarray(one.translation)) * Y_UP)[one.faces] for one in BOTH]
    found = np.asarray(mesh.vertices)[mesh.faces].reshape(2, 1538, 3, 3)
    if found[0, 0, 0, 0] < 0:  # trimesh does not keep the order of nodes; the left hand lies at negative x
        found = found[::-1]
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_colors_are_kept_as_srgb(suffix):
    colors = np.random.default_rng(0).integers(0, 256, (778, 3))
    mesh = read_trimesh(suffix, [hand(color=colors)])
    found = np.asarray(mesh.visual.vertex_colors)[mesh.faces][..., :3].astype(int)
    assert np.abs(found - colors[builtin_hand().faces]).max() <= 1


def gltf_array(gltf: pygltflib.GLTF2, accessor: int) -> np.ndarray:
    item = gltf.accessors[accessor]
    view = gltf.bufferViews[item.bufferView]
    dtype = {pygltflib.FLOAT: "<f4", pygltflib.UNSIGNED_SHORT: "<u2", pygltflib.UNSIGNED_INT: "<u4"}[item.componentType]
    width = {"SCALAR": 1, "VEC3": 3}[item.type]
    values = np.frombuffer(gltf.binary_blob(), dtype, item.count * width, view.byteOffset + (item.byteOffset or 0))
    return values.reshape(item.count, width)


def test_glb_says_what_the_specification_demands():
    data = encode_hands(BOTH, ".glb")
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert length % 4 == 0
    gltf = pygltflib.GLTF2().load_from_bytes(data)
    assert gltf.asset.version == "2.0"
    assert [node.name for node in gltf.nodes] == ["right hand", "left hand"]
    assert gltf.scenes[gltf.scene].nodes == [0, 1]
    for node, one in zip(gltf.nodes, BOTH, strict=True):
        np.testing.assert_allclose(node.translation, np.asarray(one.translation) * Y_UP, atol=1e-7)
        assert node.extras["handedness"] == one.handedness
        np.testing.assert_allclose(node.extras["joints"], one.joints * Y_UP, atol=1e-6)
        (primitive,) = gltf.meshes[node.mesh].primitives
        positions = gltf_array(gltf, primitive.attributes.POSITION)
        np.testing.assert_array_equal(positions, (one.vertices * Y_UP).astype(np.float32) + np.float32(0))
        bounds = gltf.accessors[primitive.attributes.POSITION]
        np.testing.assert_array_equal(np.float32(bounds.min), positions.min(axis=0))
        np.testing.assert_array_equal(np.float32(bounds.max), positions.max(axis=0))
        normals = gltf_array(gltf, primitive.attributes.NORMAL)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        oracle = trimesh.Trimesh(positions, one.faces, process=False)
        faces_around = oracle.face_normals[oracle.vertex_faces]
        weights = np.where(oracle.vertex_faces >= 0, oracle.area_faces[oracle.vertex_faces], 0)
        outward = (faces_around * weights[..., None]).sum(axis=1)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        np.testing.assert_allclose(normals, outward, atol=1e-4)
        indices = gltf_array(gltf, primitive.indices)
        np.testing.assert_array_equal(indices.reshape(-1, 3), one.faces)
        linear = gltf_array(gltf, primitive.attributes.COLOR_0)
        srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(255 * srgb, np.broadcast_to(one.color, (778, 3)), atol=0.01)
        assert gltf.materials[primitive.material].pbrMetallicRoughness.metallicFactor == 0
    for view in gltf.bufferViews:
        assert view.byteOffset % 4 == 0


def test_npz_stacks_the_hands():
    with np.load(io.BytesIO(encode_hands(BOTH, ".npz")), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert arrays["handedness"].tolist() == ["right", "left"]
    assert arrays["joint_names"].tolist() == list(JOINT_NAMES)
    np.testing.assert_array_equal(arrays["vertices"], [one.vertices for one in BOTH])
    np.testing.assert_array_equal(arrays["joints"], [one.joints for one in BOTH])
    np.testing.assert_array_equal(arrays["faces"], [one.faces for one in BOTH])
    np.testing.assert_allclose(arrays["translation"], [one.translation for one in BOTH], atol=1e-7)
    assert arrays["betas"].shape == (2, 10)
    assert arrays["box"].shape == (2, 4)
    assert arrays["intrinsics.K"].shape == (2, 3, 3)
    assert arrays["intrinsics.from"].tolist() == ["EXIF", "EXIF"]
    assert encode_hands(BOTH, ".npz") == encode_hands(BOTH, ".npz")


def test_json_is_plain_and_complete():
    document = json.loads(encode_hands(BOTH, ".json"), parse_constant=lambda text: pytest.fail(text))
    assert (document["format"], document["version"]) == ("handmesh.hands", 1)
    assert document["units"]["length"] == "metre"
    assert document["joint_names"] == list(JOINT_NAMES)
    assert [tuple(bone) for bone in document["bones"]] == list(BONES)
    for found, one in zip(document["hands"], BOTH, strict=True):
        assert (found["handedness"], found["name"]) == (one.handedness, one.name)
        np.testing.assert_allclose(found["vertices"], one.vertices, atol=1e-6)
        np.testing.assert_allclose(found["joints"], one.joints, atol=1e-6)
        np.testing.assert_array_equal(found["faces"], one.faces)
        np.testing.assert_allclose(found["betas"], one.extra["betas"], rtol=1e-6)
        assert found["box"] == [1.0, 2.0, 30.5, 40.25]
        assert found["intrinsics"]["from"] == "EXIF"
        assert found["score"] == 0.75


def test_what_is_not_known_is_null_or_nan():
    hands = [
        hand(extra={"score": None, "source": None, "depth": None}),
        hand(extra={"score": 0.5, "source": "a", "depth": None}),
    ]
    with np.load(io.BytesIO(encode_hands(hands, ".npz"))) as archive:
        np.testing.assert_array_equal(archive["score"], [np.nan, 0.5])
        assert archive["source"].tolist() == ["", "a"]
        assert np.isnan(archive["depth"]).all()
    assert json.loads(encode_hands(hands, ".json"))["hands"][0]["score"] is None


def inside_html(page: bytes) -> dict:
    """What a page holds: `center`, `radius` and the hands, their arrays decoded."""
    (text,) = re.findall(r'<script id="hands" type="application/json">(.*?)</script>', page.decode(), re.DOTALL)
    document = json.loads(text)
    for one in document["hands"]:
        for name, dtype in (("vertices", "<f4"), ("faces", "<u4"), ("colors", "u1")):
            one[name] = np.frombuffer(base64.b64decode(one[name]), dtype).reshape(-1, 3)
    return document


def test_html_needs_nothing_else():
    """No network and no file beside it: one script, no address, and a policy under which nothing could be fetched."""
    page = encode_hands(BOTH, ".html").decode()
    assert page.startswith("<!doctype html")
    assert not re.search(r"\b(src|href)\s*=|\burl\(|\bimport\b|\bimportScripts\b|\bfetch\b|https?:", page)
    assert not re.search(r"^\s*(import|export) |\{\{", page, re.MULTILINE)
    assert "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'\"" in page
    assert len(page) < 120_000


def test_html_holds_the_hands():
    inside = inside_html(encode_hands(BOTH, ".html"))
    for read, one in zip(inside["hands"], BOTH, strict=True):
        assert (read["name"], read["handedness"]) == (one.name, one.handedness)
        np.testing.assert_array_equal(read["vertices"], (one.vertices_cam() * Y_UP).astype(np.float32))
        np.testing.assert_array_equal(read["faces"], one.faces)
        np.testing.assert_array_equal(read["colors"], np.broadcast_to(one.color, (778, 3)))
    points = np.concatenate([read["vertices"] for read in inside["hands"]])
    farthest = np.linalg.norm(points - inside["center"], axis=1).max()
    assert farthest < inside["radius"] < 1.1 * farthest


def test_no_name_breaks_the_page():
    name = "</script><script>alert('{{hands}}') & co</script>"
    page = encode_hands([hand(name=name)], ".html")
    assert inside_html(page)["hands"][0]["name"] == name
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(&#x27;{{hands}}&#x27;) &amp; co" in page.decode()


def test_modules_of_the_viewer_agree_on_names():
    """They are one script in an .html, where a name can be given once; and none of them is missing."""
    text = encode_hands(BOTH, ".html").decode()
    given = re.findall(r"^(?:const|let|class|function) (\w+)(?=\(| [={])", text, re.MULTILINE)
    assert len(given) == len({*given})
    for module in (Path(handmesh.__file__).parent / "assets" / "viewer").glob("*.js"):
        assert {*re.findall(r"^export (?:const|class|function) (\w+)", module.read_text(), re.MULTILINE)} <= {*given}


@pytest.fixture
def opened(tmp_path):
    """An .html of a red right hand and a green left one, as a browser shows it from its file."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    path = tmp_path / "hands.html"
    write_hands(
        path, [replace(one, color=color) for one, color in zip(BOTH, ((220, 40, 40), (40, 180, 60)), strict=True)]
    )
    with chromium(tmp_path / "profile") as page:
        page.resize(800, 600)
        page.open(path.as_uri(), ready="document.readyState === 'complete'")
        yield page
        assert page.errors == []
        assert page.requested == [path.as_uri()]


def shown(page: Page) -> dict[str, np.ndarray]:
    """(N, 2) x, y of the red and of the green pixels that are on the screen once it has been drawn."""
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(int)
    others = {"red": image[..., :2].max(axis=-1), "green": image[..., ::2].max(axis=-1)}
    masks = {"red": image[..., 2] > others["red"] + 40, "green": image[..., 1] > others["green"] + 40}
    return {name: np.argwhere(mask)[:, ::-1] for name, mask in masks.items()}


def test_html_shows_the_hands_and_turns_them(opened):
    """Each in its colour, placed to each other as their camera saw them; by mouse, wheel, one finger and two."""
    centers = [one.vertices_cam().min(axis=0) + np.ptp(one.vertices_cam(), axis=0) / 2 for one in BOTH]
    at_first = shown(opened)
    middles = {name: (found.min(axis=0) + found.max(axis=0)) / 2 for name, found in at_first.items()}
    on_screen, in_camera = middles["red"] - middles["green"], (centers[0] - centers[1])[:2]
    pixels_per_metre = np.linalg.norm(on_screen) / np.linalg.norm(in_camera)
    np.testing.assert_allclose(on_screen, pixels_per_metre * in_camera, atol=3)
    extent = np.ptp(at_first["red"], axis=0)
    np.testing.assert_allclose(extent, pixels_per_metre * np.ptp(BOTH[0].vertices_cam(), axis=0)[:2], rtol=0.1, atol=3)

    def size() -> float:
        return float(np.ptp(np.concatenate(list(shown(opened).values())), axis=0).max())

    def moved(before: dict[str, np.ndarray]) -> bool:
        return any(len({*map(tuple, before[name])} ^ {*map(tuple, now)}) > 200 for name, now in shown(opened).items())

    opened.drag((400, 300), (460, 340))
    assert moved(at_first)
    opened.press("0")
    assert not moved(at_first)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        opened.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    before = size()
    opened.call("Input.dispatchMouseEvent", type="mouseWheel", x=400, y=300, deltaX=0, deltaY=300)
    assert size() < 0.8 * before
    opened.press("0")
    touch("touchStart", (400, 300))
    touch("touchMove", (460, 340))
    touch("touchEnd")
    assert moved(at_first)
    opened.press("0")
    touch("touchStart", (300, 300), (500, 300))
    touch("touchMove", (350, 300), (450, 300))
    touch("touchEnd")
    assert size() < 0.8 * before


AXES = Rotation.from_rotvec([0.2, -0.4, 0.1]).as_matrix()


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_the_format_decides_the_frame(suffix):
    """Scenes place hands in the camera; data keep what pose and betas give, and how to go from there."""
    one = hand(cam_from_hand_axes=AXES)
    cam = one.vertices @ AXES.T + np.asarray(one.translation)
    content = io.BytesIO(encode_hands([one], suffix))
    if suffix in (".json", ".npz"):
        data = np.load(content) if suffix == ".npz" else json.load(content)["hands"][0]
        part = {name: np.asarray(data[name]) for name in ("vertices", "cam_from_hand_axes", "translation")}
        vertices, axes, translation = (value[0] if suffix == ".npz" else value for value in part.values())
        np.testing.assert_allclose(vertices, one.vertices, atol=1e-6)
        np.testing.assert_allclose(vertices @ axes.T + translation, cam, atol=1e-6)
    elif suffix == ".html":
        np.testing.assert_allclose(inside_html(content.getvalue())["hands"][0]["vertices"], cam * Y_UP, atol=2e-6)
    else:
        mesh = trimesh.load(content, file_type=suffix[1:], process=False, force="mesh")
        np.testing.assert_allclose(np.asarray(mesh.vertices)[mesh.faces], (cam * Y_UP)[one.faces], atol=2e-6)
    if suffix == ".glb":
        (node,) = pygltflib.GLTF2().load_from_bytes(content.getvalue()).nodes
        np.testing.assert_allclose(node.extras["joints"], (one.joints @ AXES.T) * Y_UP, atol=1e-6)


def test_trimesh_is_the_door_to_its_other_formats():
    one = hand(cam_from_hand_axes=AXES)
    mesh = one.to_trimesh()
    np.testing.assert_allclose(mesh.vertices, one.vertices_cam() * Y_UP, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, one.faces)
    assert mesh.visual.vertex_colors[5, :3].tolist() == [200, 100, 50]
    off = mesh.export(file_type="off")
    assert off.startswith("OFF\n778 1538 0")


def test_obj_and_ply_say_which_hand_is_which():
    text = encode_hands(BOTH, ".obj").decode()
    assert re.findall(r"^o (.*)$", text, re.MULTILINE) == ["right_hand", "left_hand"]
    assert text.startswith("# handmesh")
    first = text.index("o left_hand")
    assert text[:first].count("\nv ") == text[first:].count("\nv ") == 778
    assert text.count("\nvn ") == 2 * 778
    header = encode_hands(BOTH, ".ply").partition(b"end_header")[0].decode()
    assert "comment right hand: right, vertices 0 to 777\ncomment left hand: left, vertices 778 to 1555\n" in header


def test_no_hands_is_an_answer_too():
    assert json.loads(encode_hands([], ".json"))["hands"] == []
    with np.load(io.BytesIO(encode_hands([], ".npz"))) as archive:
        assert archive["vertices"].shape == (0, 778, 3)
        assert archive["handedness"].shape == (0,)
    assert pygltflib.GLTF2().load_from_bytes(encode_hands([], ".glb")).nodes == []
    assert b"element vertex 0" in encode_hands([], ".ply")
    assert encode_hands([], ".obj").startswith(b"#")
    assert len(encode_hands([], ".stl")) == 84
    assert inside_html(encode_hands([], ".html"))["hands"] == []


def test_a_notebook_shows_the_page_in_a_frame(tmp_path):
    """With the policy of a notebook's output, whose scripts it does not need."""
    element = notebook_html(BOTH, height=300)
    (page,) = re.findall(r'<iframe srcdoc="([^"]*)"', element)
    assert html.unescape(page).encode() == encode_hands(BOTH, ".html")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    colored = [replace(one, color=color) for one, color in zip(BOTH, ((220, 40, 40), (40, 180, 60)), strict=True)]
    (tmp_path / "cell.html").write_text(f"<!doctype html><body>{notebook_html(colored)}", encoding="utf-8")
    with chromium(tmp_path / "profile") as tab:
        tab.open((tmp_path / "cell.html").as_uri(), ready="document.readyState === 'complete'")
        until = time.monotonic() + 90  # a frame of another origin is drawn when it likes
        while min(map(len, (found := shown(tab)).values())) < 500 and time.monotonic() < until:
            time.sleep(0.1)
        assert tab.errors == []
    for points in found.values():
        assert len(points) > 500
        assert points[:, 1].max() < 420, "in a frame of 400 px"


def test_html_of_no_hand_says_so(tmp_path):
    """An answer as in every other format: a folder of photographs, one of which shows none, is done."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    write_hands(tmp_path / "none.html", [])
    with chromium(tmp_path / "profile") as page:
        page.open((tmp_path / "none.html").as_uri(), ready="document.readyState === 'complete'")
        assert page.run("document.getElementById('help').textContent") == "No hand was found."
        assert page.run("document.title") == "No hand"
        assert page.errors == []


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_a_file_is_the_bytes(suffix, tmp_path):
    path = tmp_path / f"hand{suffix.upper()}"
    write_hands(path, BOTH)
    assert path.read_bytes() == encode_hands(BOTH, suffix)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "hand.json"
    write_hands(path, [hand()])
    before = path.read_bytes()
    with pytest.raises(ExportError, match="score"):
        write_hands(path, [hand(extra={"score": float("nan")})])
    assert path.read_bytes() == before
    with pytest.raises(ExportError, match="no folder"):
        write_hands(tmp_path / "missing" / "hand.glb", [hand()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertices": np.zeros((5, 2))}, "vertices"),
        ({"vertices": np.full((778, 3), np.nan)}, "not all finite"),
        ({"translation": (0, 0, np.inf)}, "translation"),
        ({"faces": np.array([[0, 1, 778]])}, "faces"),
        ({"faces": np.zeros((0, 3), int)}, "faces"),
        ({"joints": np.zeros((16, 3))}, r"\(21, 3\)"),
        ({"color": (1, 2, 3, 4)}, "color"),
        ({"name": "a\nb"}, "one line"),
        ({"extra": {"vertices": 1}}, "'vertices'"),
        ({"extra": {"thing": object()}}, "thing"),
    ],
)
def test_a_hand_that_cannot_be_written_is_named(changes, message):
    with pytest.raises(ExportError, match=message):
        encode_hands([hand(**changes)], ".json")


def test_what_npz_cannot_stack_is_named():
    with pytest.raises(ExportError, match="betas"):
        encode_hands([hand(extra={"betas": np.zeros(10)}), hand(extra={})], ".npz")
    with pytest.raises(ExportError, match=r"betas differs.*\(10,\), \(3,\)"):
        encode_hands([hand(extra={"betas": np.zeros(10)}), hand(extra={"betas": np.zeros(3)})], ".npz")
    with pytest.raises(ExportError, match="thing is of type object"):
        encode_hands([hand(extra={"thing": object()})], ".npz")


@pytest.mark.parametrize("suffix", [".fbx", "", ".png"])
def test_other_suffixes_are_refused_by_name(suffix):
    with pytest.raises(ExportError, match=r"\.glb"):
        write_hands(f"hand{suffix}", [hand()])


def test_normals_of_a_sphere_point_outward():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    normals = vertex_normals(np.asarray(sphere.vertices), np.asarray(sphere.faces))
    np.testing.assert_allclose(normals, sphere.vertices, atol=0.02)
    flipped = vertex_normals(np.asarray(sphere.vertices), np.asarray(sphere.faces)[:, ::-1])
    np.testing.assert_allclose(flipped, -normals, atol=1e-12)
    lonely = vertex_normals(np.vstack([sphere.vertices, [[5.0, 5.0, 5.0]]]), np.asarray(sphere.faces))
    assert (lonely[-1] == 0).all()


def test_the_command_line_offers_every_format():
    """It lists them without importing this module, which would make `--help` slow."""
    assert {f".{name}" for name in FORMATS} == {*MESH_SUFFIXES, ".png", ".jpg"}


def test_the_manual_lists_every_format():
    """`.stl` and `.jpg` were not in its table."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")
    table, _, _ = page.partition("## Units and axes")
    assert set(re.findall(r"`(\.\w+)`", table)) == {f".{name}" for name in FORMATS}


def test_the_manuals_lines_about_npz_run(tmp_path, monkeypatch):
    """On NumPy 1.26, too, which has no `.mT`: the page asked for it."""
    monkeypatch.chdir(tmp_path)
    axes = Rotation.from_rotvec([0.1, 0.5, -0.2]).as_matrix()
    hands = [replace(one, cam_from_hand_axes=axes) for one in BOTH]
    write_hands("hand.npz", hands)
    page = (Path(__file__).parents[2] / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "hand.npz" in text)
    assert ".mT" not in page
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    assert namespace["points_cam"].shape == (2, 778, 3)
    moved = [one.cam_from_hand_axes @ one.vertices[5] + one.translation for one in hands]
    np.testing.assert_allclose(namespace["points_cam"][:, 5], moved, atol=1e-6)
