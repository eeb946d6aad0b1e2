"""From photograph to hands: mirrored, turned, boxed and EXIF-turned photos get the same hand, where it is.

Two engines. A small network that was never trained answers every crop differently, so nothing but the geometry around
it can make two answers agree. And an engine that reads two coloured dots out of its crop and answers with the hand
whose wrist and middle knuckle they are: what it finds must land on the dots, wherever the photo was cut and turned.
"""

from __future__ import annotations

import ast
import io
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marker_hands import MarkerEngine, draw, hand_at
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

import handmesh
from handmesh.detect import Detection
from handmesh.errors import ConfigError, ExportError, ImageError
from handmesh.files.image import encode_image, read_photo
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import BONES, FINGER_NAMES, JOINT_NAMES, MANO_JOINT_NAMES, Handedness, HandOutput, builtin_hand
from handmesh.hand.anatomy import angles_from_pose, flexion_axes
from handmesh.hand.layer import HandModel
from handmesh.metrics import pa_rigid_mean_error
from handmesh.model.bundled import bundled_model_path
from handmesh.motion.track import Tracker
from handmesh.predict import MIN_SCORE, HandPrediction, Predictor, load_predictor, overlay_hands, save_hands
from handmesh.runtime.engine import open_engine
from handmesh.runtime.torch import TorchEngine

SIDES = list(Handedness)
MIRROR = np.diag([-1.0, 1.0, 1.0])
WRIST, KNUCKLE = JOINT_NAMES.index("wrist"), JOINT_NAMES.index("middle_mcp")


def posed(side: Handedness, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints of that side's own hand model, float64."""
    model = HandModel(builtin_hand(side)).double()
    vertices, joints = model(torch.from_numpy(pose).double(), torch.from_numpy(betas).double())
    return vertices.numpy(), joints.numpy()


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Of the mesh with its wrist closed by a fan: above zero when faces look outward (divergence theorem)."""
    edges = {(int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    border = [edge for edge in edges if edge[::-1] not in edges]
    assert border, "the wrist is open"
    middle = vertices[[a for a, _ in border]].mean(axis=0)
    triangles = [vertices[face] for face in faces] + [np.stack([vertices[b], vertices[a], middle]) for a, b in border]
    return float(sum(np.linalg.det(triangle) for triangle in triangles)) / 6


class DotEngine:
    """Reads a red dot as the wrist and a green one as the middle knuckle, and answers with a flat right hand there."""

    name = "dots"
    resolution = 128
    record: dict[str, Any] = {}  # noqa: RUF012, as the protocol has it
    hand = builtin_hand()

    def __call__(self, crops: np.ndarray) -> HandOutput:
        answers = [self._answer(crop.astype(float)) for crop in crops]
        return HandOutput(*(np.stack(part).astype(np.float32) for part in zip(*answers, strict=True)))

    def _answer(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        wrist, knuckle = self._dot(crop, 0), self._dot(crop, 1)
        _, rest = posed(Handedness.RIGHT, np.tile(np.eye(3), (16, 1, 1)), np.zeros(10))
        seen, resting = knuckle - wrist, (rest[KNUCKLE] - rest[WRIST])[:2]
        turn = math.atan2(seen[1], seen[0]) - math.atan2(resting[1], resting[0])
        pose = np.tile(np.eye(3), (16, 1, 1))
        pose[0] = Rotation.from_euler("z", turn).as_matrix()
        vertices, joints = posed(Handedness.RIGHT, pose, np.zeros(10))
        scale = np.linalg.norm(seen) / np.linalg.norm(resting)
        camera = np.array([scale, *(wrist / scale - joints[WRIST, :2])])
        return camera, pose, np.zeros(10), vertices, joints, np.ones(()), np.ones(()), np.ones(21), np.zeros((21, 3))

    def _dot(self, crop: np.ndarray, channel: int) -> np.ndarray:
        """(2,) ndc: the middle of what is brighter in this channel than in the others."""
        weight = np.clip(crop[..., channel] - np.delete(crop, channel, axis=-1).max(axis=-1), 0, None)
        assert weight.sum() > 0, "the crop has lost the dot"
        centers = (2 * np.arange(self.resolution) + 1) / self.resolution - 1
        return np.array([(weight.sum(0) * centers).sum(), (weight.sum(1) * centers).sum()]) / weight.sum()


class SidedEngine(DotEngine):
    """Also tells sides, by a blue dot on the thumb's side, and its confidence, by how bright that is."""

    record: dict[str, Any] = {"model": {"handedness_head": True, "confidence_head": True}}  # noqa: RUF012

    def _answer(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        wrist, knuckle, thumb = (self._dot(crop, channel) for channel in range(3))
        (ax, ay), (bx, by) = knuckle - wrist, thumb - wrist
        right = 0.9 if ax * by - ay * bx > 0 else 0.1
        confidence = np.clip(crop[..., 2] - crop[..., :2].max(axis=-1), 0, None).max() / 255
        return *super()._answer(crop)[:5], np.array(confidence), np.array(right), np.ones(21), np.zeros((21, 3))


def dotted(
    wrist: tuple[float, float],
    knuckle: tuple[float, float],
    width: int,
    height: int,
    thumb: tuple[float, float] | None = None,
) -> np.ndarray:
    """A grey photograph with two or three soft round dots, drawn from their definition."""
    image = np.full((height, width, 3), 60.0)
    y, x = np.mgrid[:height, :width]
    for channel, (cx, cy) in enumerate((wrist, knuckle, thumb) if thumb else (wrist, knuckle)):
        image[..., channel] += 190 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 4.0**2))
    return image.round().astype(np.uint8)


DOTS = np.array([[205.0, 150.0], [160.0, 110.0]])  # wrist, knuckle
DOTTED = dotted((205, 150), (160, 110), 331, 240)
SIDED = dotted((205, 150), (160, 110), 331, 240, (195, 110))


@pytest.fixture(scope="module")
def engine(model_file) -> TorchEngine:
    return TorchEngine(model_file)


@pytest.fixture(scope="module")
def predictor(engine) -> Predictor:
    return Predictor(engine)


@pytest.fixture(scope="module")
def photo(scene) -> np.ndarray:
    """A photograph that is not square, its hand off the middle."""
    return np.ascontiguousarray(np.vstack([scene.image, scene.image[::-1]])[:203])


@pytest.fixture(scope="module", params=SIDES)
def hand(request, predictor, photo) -> HandPrediction:
    (prediction,) = predictor(photo, handedness=request.param)
    return prediction


def one(predictor: Predictor, image: Any, **arguments: Any) -> HandPrediction:
    """The one hand, however unsure."""
    (prediction,) = predictor(image, **{"min_score": 0, **arguments})
    return prediction


def assert_same(first: HandPrediction, second: HandPrediction, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(first.vertices, second.vertices, atol=atol)
    np.testing.assert_allclose(first.joints, second.joints, atol=atol)
    np.testing.assert_allclose(first.pose, second.pose, atol=10 * atol)
    np.testing.assert_allclose(first.betas, second.betas, atol=10 * atol)
    np.testing.assert_allclose(first.keypoints_image(), second.keypoints_image(), atol=0.05)
    assert first.handedness == second.handedness


# ------------------------------------------------------------------------------------------------- left and right


@pytest.mark.parametrize("width", [160, 157, 96])
@pytest.mark.parametrize(("passes", "boxed"), [(1, False), (3, False), (1, True), (3, True)])
def test_mirroring_the_photo_mirrors_the_answer(width, passes, boxed, engine, photo):
    """A left hand is the right hand of the mirrored photo: mesh, joints, rotations, camera and keypoints."""
    image = np.ascontiguousarray(photo[:, :width])
    flipped = np.ascontiguousarray(image[:, ::-1])
    x0, y0, x1, y1 = 12.5, 30.0, 80.0, 120.25
    box, flipped_box = (x0, y0, x1, y1), (width - 1 - x1, y0, width - 1 - x0, y1)
    predictor = Predictor(engine, passes=passes)
    right = one(predictor, image, handedness="right", boxes=[box] if boxed else None)
    left = one(predictor, flipped, handedness="left", boxes=[flipped_box] if boxed else None)

    np.testing.assert_allclose(left.vertices, right.vertices * (-1, 1, 1), atol=1e-5)
    np.testing.assert_allclose(left.joints, right.joints * (-1, 1, 1), atol=1e-5)
    np.testing.assert_allclose(left.pose, MIRROR @ right.pose @ MIRROR, atol=1e-5)
    np.testing.assert_allclose(left.betas, right.betas, atol=1e-5)
    np.testing.assert_allclose(left.camera.scale, right.camera.scale, atol=1e-4)
    np.testing.assert_allclose(left.camera.translation, right.camera.translation * (-1, 1), atol=1e-5)
    x, y = right.keypoints_image().T
    np.testing.assert_allclose(left.keypoints_image(), np.column_stack([width - 1 - x, y]), atol=1e-2)
    assert left.score == pytest.approx(right.score, abs=1e-4)
    assert (right.handedness, left.handedness) == (Handedness.RIGHT, Handedness.LEFT)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_side_is_found_where_it_is_not_said(passes, boxed):
    """A photo and its mirror image: a right and a left hand, each the same as if its side had been given."""
    predictor = Predictor(SidedEngine(), passes=passes)
    for image, side in ((SIDED, Handedness.RIGHT), (np.ascontiguousarray(SIDED[:, ::-1]), Handedness.LEFT)):
        boxes = [(100, 80, 260, 180)] * 2 if boxed else None
        for found in predictor(image, boxes=boxes, handedness="auto"):
            assert (found.handedness, found.handedness_source) == (side, "found")
            assert found.handedness_score == pytest.approx(0.9)
            given = predictor(image, boxes=boxes, handedness=side)[0]
            assert (given.handedness_source, given.handedness_score) == ("given", 1)
            assert_same(found, given)


def test_a_given_side_is_not_questioned():
    hands = Predictor(SidedEngine())(SIDED, boxes=[(100, 80, 260, 180)] * 3, handedness=["left", "auto", "right"])
    assert [hand.handedness for hand in hands] == ["left", "right", "right"]
    assert [hand.handedness_source for hand in hands] == ["given", "found", "given"]


def test_a_network_that_cannot_tell_takes_a_right_hand(engine, photo):
    assumed = one(Predictor(engine), photo, handedness="auto")
    assert assumed.handedness_source == "assumed"
    assert_same(assumed, one(Predictor(engine), photo, handedness="right"))


def test_the_score_is_the_networks_own_confidence_if_it_has_one():
    confidence = one(Predictor(SidedEngine(), passes=1), SIDED).score
    assert confidence == pytest.approx(190 / 255, abs=0.1)
    faint = SIDED.copy()
    faint[..., 2] = 60 + (faint[..., 2] - 60) // 2
    assert one(Predictor(SidedEngine(), passes=1), faint).score == pytest.approx(confidence / 2, abs=0.05)


class DoubtfulEngine(SidedEngine):
    """Takes the index finger's tip for misplaced."""

    record: dict[str, Any] = {"model": {**SidedEngine.record["model"], "joint_confidence_head": True}}  # noqa: RUF012

    def _answer(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        joints = np.where(np.arange(21) == JOINT_NAMES.index("index_tip"), 0.1, 0.9)
        return *super()._answer(crop)[:7], joints, np.zeros((21, 3))


def test_an_unsure_finger_is_said_and_drawn_paler(tmp_path):
    hand = one(Predictor(DoubtfulEngine()), SIDED)
    sure = one(Predictor(SidedEngine()), SIDED)
    assert sure.joint_scores is None
    assert hand.joint_scores is not None
    assert int(hand.joint_scores.argmin()) == JOINT_NAMES.index("index_tip")
    paler = np.asarray(hand.mesh.color).sum(axis=-1) - np.sum(sure.mesh.color)
    assert paler.shape == (778,)
    by_distance = np.argsort(np.linalg.norm(hand.vertices - hand.joints[JOINT_NAMES.index("index_tip")], axis=1))
    assert paler[by_distance[:5]].min() > 100  # of 765
    assert np.abs(paler[by_distance[-300:]]).max() < 1
    hand.save(tmp_path / "hand.json")
    record = json.loads((tmp_path / "hand.json").read_text())["hands"][0]
    np.testing.assert_allclose(record["joint_scores"], hand.joint_scores, atol=1e-6)
    sure.save(tmp_path / "sure.json")
    assert "joint_scores" not in json.loads((tmp_path / "sure.json").read_text())["hands"][0]


class MoodyEngine(SidedEngine):
    """Its confidence (passes, rows) is given; its answers have the number of the pass as their shape."""

    def __init__(self, *confidences: tuple[float, ...]) -> None:
        self.confidences = iter(enumerate(confidences, start=1))

    def __call__(self, crops: np.ndarray) -> HandOutput:
        number, confidence = next(self.confidences)
        betas = np.full((len(crops), 10), number, np.float32)
        return super().__call__(crops)._replace(betas=betas, confidence=np.array(confidence, np.float32))


def test_the_most_confident_pass_counts():
    """Of those after the first, for each hand on its own."""
    engine = MoodyEngine((0.9, 0.9), (0.4, 0.6), (0.7, 0.2))
    hands = Predictor(engine)(SIDED, boxes=[(100, 60, 250, 200), (120, 80, 230, 190)], handedness="right")
    assert [hand.score for hand in hands] == pytest.approx([0.7, 0.6])
    assert [hand.betas[0] for hand in hands] == [3, 2]


def test_without_a_confidence_the_last_pass_counts():
    engine = MoodyEngine((0.9,), (0.6,), (0.2,))
    engine.record = {}
    assert one(Predictor(engine), SIDED).betas[0] == 3


def test_faces_look_outward(hand):
    volume = signed_volume(hand.vertices.astype(float), hand.faces)
    assert 5e-5 < volume < 1e-3, "a hand holds a few hundred millilitres"


def test_the_mesh_is_the_hand_models_for_this_pose_and_shape(hand):
    """Turned back and un-mirrored, it is still what its own side's hand model gives, to 0.01 mm."""
    vertices, joints = posed(hand.handedness, hand.pose, hand.betas)
    np.testing.assert_allclose(hand.vertices, vertices, atol=1e-5)
    np.testing.assert_allclose(hand.joints, joints, atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(hand.pose), 1, atol=1e-5)
    np.testing.assert_array_equal(hand.faces, builtin_hand(hand.handedness).f)


# ------------------------------------------------------------------------------------------------- where it is


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("boxes", [None, [(90, 50, 260, 190)]])
def test_keypoints_land_on_the_dots(side, passes, boxes):
    prediction = one(Predictor(DotEngine(), passes=passes), DOTTED, boxes=boxes, handedness=side)
    found = prediction.keypoints_image()[[WRIST, KNUCKLE]]
    np.testing.assert_allclose(found, DOTS, atol=0.5)
    assert prediction.source == ("whole image" if boxes is None else "given box")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turning_the_photo_turns_the_answer(side, quarters):
    """The refined crop is upright whichever way the photo lies, so the same pixels are seen and the answer turns."""
    predictor = Predictor(DotEngine())
    before = one(predictor, DOTTED, handedness=side)
    after = one(predictor, np.ascontiguousarray(np.rot90(DOTTED, quarters)), handedness=side)
    R = np.linalg.matrix_power(np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), quarters)  # np.rot90: x right -> up
    height, width = DOTTED.shape[:2]
    middle, turned_middle = np.array([width - 1, height - 1]) / 2, np.array([width - 1, height - 1]) / 2
    if quarters % 2:
        turned_middle = turned_middle[::-1]

    expected = (before.keypoints_image() - middle) @ R[:2, :2].T + turned_middle
    np.testing.assert_allclose(after.keypoints_image(), expected, atol=0.3)
    around_wrist = [(one_of.vertices - one_of.joints[WRIST]) for one_of in (before, after)]
    np.testing.assert_allclose(around_wrist[1], around_wrist[0] @ R.T, atol=5e-4)
    np.testing.assert_allclose(after.pose[0], R @ before.pose[0], atol=5e-3)


def test_a_turned_crop_of_a_turned_photo_gives_exactly_the_turned_answer(engine, photo):
    """The same pixels reach the network: a quarter turn of photo and crop together changes nothing but the axes."""
    predictor = Predictor(engine, passes=1)
    height, width = photo.shape[:2]
    intrinsics = Intrinsics.default_for(width, height)
    upright = CropTransform((70.0, 90.0), 120.0)
    rotated = CropTransform((90.0, width - 1 - 70.0), 120.0, rotation=math.pi / 2)

    (before,) = predictor.predict_crops(photo, [upright], intrinsics=intrinsics)
    (after,) = predictor.predict_crops(np.ascontiguousarray(np.rot90(photo)), [rotated], intrinsics=intrinsics)
    R = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    x, y = before.keypoints_image().T
    np.testing.assert_allclose(after.keypoints_image(), np.column_stack([y, width - 1 - x]), atol=1e-2)
    np.testing.assert_allclose(after.pose[0], R @ before.pose[0], atol=1e-5)
    np.testing.assert_allclose(after.pose[1:], before.pose[1:], atol=1e-5)
    np.testing.assert_allclose(
        after.vertices - after.joints[WRIST], (before.vertices - before.joints[WRIST]) @ R.T, atol=1e-5
    )


def test_what_is_drawn_is_what_the_camera_projects(hand):
    np.testing.assert_allclose(
        hand.keypoints_image(), hand.crop.to_image(hand.camera.project(hand.joints)), rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(
        hand.vertices_image()[:, :2], hand.crop.to_image(hand.camera.project(hand.vertices)), rtol=0, atol=1e-3
    )
    low, high = hand.keypoints_image().min(axis=0), hand.keypoints_image().max(axis=0)
    np.testing.assert_allclose(hand.box, [*low, *high], atol=1e-3)
    assert hand.crop == hand.crop.upright, "results are in the photo's own axes"


def test_depth_in_pixels_has_the_scale_of_the_image(hand):
    """A unit of depth is a unit across: bones keep their lengths, up to the camera's scale."""
    points, metres = hand.vertices_image()[[744, 320, 443]], hand.vertices[[744, 320, 443]]
    lengths = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=-1)
    expected = np.linalg.norm(metres - np.roll(metres, 1, axis=0), axis=-1)
    np.testing.assert_allclose(lengths / expected, lengths[0] / expected[0], rtol=1e-3)


@pytest.mark.parametrize(("focal", "tolerance"), [(1e5, 0.02), (None, 0.12)])
def test_in_space_it_is_where_it_is_drawn(focal, tolerance, hand, photo):
    """Projected with the intrinsics, the mesh in space covers the drawn one: exactly for a long lens, and within the
    perspective that a weak-perspective camera leaves out for a normal one. Relative to the hand's size."""
    height, width = photo.shape[:2]
    intrinsics = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2) if focal else hand.intrinsics
    drawn = hand.vertices_image()[:, :2]
    seen = intrinsics.project(hand.vertices_cam(intrinsics))
    assert np.linalg.norm(seen - drawn, axis=-1).max() < tolerance * np.ptp(drawn, axis=0).max()
    joints_seen = intrinsics.project(hand.joints_cam(intrinsics))
    assert np.linalg.norm(joints_seen - hand.keypoints_image(), axis=-1).max() < tolerance * np.ptp(drawn, axis=0).max()
    # The mesh in space is the mesh, moved and turned as a whole: bones keep their lengths.
    for points in (hand.joints_cam(intrinsics), hand.joints):
        lengths = [np.linalg.norm(points[a] - points[b]) for a, b in BONES]
        np.testing.assert_allclose(
            lengths, [np.linalg.norm(hand.joints[a] - hand.joints[b]) for a, b in BONES], atol=1e-4
        )
    rest = hand.joints_cam(intrinsics)[0] - hand.origin_cam(intrinsics)
    assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(hand.joints[0]), abs=1e-4)


def test_places_in_space_take_k_as_an_array(hand):
    """`hand.vertices_cam(K)` ended in numpy's "truth value of an array", where the predictor takes K."""
    given = Intrinsics(500, 510, 80, 90)
    for place in (hand.vertices_cam, hand.joints_cam, hand.origin_cam, hand.cam_from_hand_axes):
        np.testing.assert_array_equal(place(given.matrix), place(given))


def test_the_lens_is_the_given_one_or_the_files_or_a_normal_one(predictor, photo):
    height, width = photo.shape[:2]
    assert one(predictor, photo).intrinsics == Intrinsics.default_for(width, height)
    given = Intrinsics(500, 510, 80, 90)
    assert one(predictor, photo, intrinsics=given).intrinsics == given
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26  # FocalLengthIn35mmFilm
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", exif=exif)
    assert one(predictor, stream.getvalue()).intrinsics == Intrinsics.from_exif_focal_35mm(26, width, height)


# ------------------------------------------------------------------------------------------------- photos and boxes


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_photo_that_exif_turns_is_the_upright_photo(orientation, predictor, photo):
    """PNG: the same pixels, stored lying; what Pillow makes of the tag is the oracle."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG", exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(stream)))
    assert_same(one(predictor, stream.getvalue()), one(predictor, np.ascontiguousarray(upright)), atol=1e-6)


def test_path_bytes_array_and_photo_are_one_photo(predictor, photo, tmp_path):
    encoded = encode_image(photo, "png")
    (tmp_path / "photo.png").write_bytes(encoded)
    expected = one(predictor, photo)
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), encoded, read_photo(encoded)):
        assert_same(one(predictor, source), expected, atol=1e-7)


def test_boxes_in_one_batch_are_boxes_one_at_a_time(predictor, photo):
    boxes = [(10, 20, 90, 100), (50.5, 60, 150, 180), (0, 0, 159, 202)]
    sides = ["right", "left", Handedness.RIGHT]
    together = predictor(photo, boxes=boxes, handedness=sides)
    assert [one_of.handedness for one_of in together] == sides
    for box, side, found in zip(boxes, sides, together, strict=True):
        assert_same(found, one(predictor, photo, boxes=[box], handedness=side))
    as_array = predictor(photo, boxes=np.array(boxes), handedness=sides)
    assert_same(as_array[1], together[1])


def test_a_box_says_where_to_look(engine, photo):
    """With one pass the crop is the box's square with the margin; nothing outside it matters."""
    predictor = Predictor(engine, passes=1)
    found = one(predictor, photo, boxes=[(40, 60, 80, 90)])
    assert found.crop == CropTransform((60.0, 75.0), 60.0)
    assert found.score == 1.0
    blackened = photo.copy()
    blackened[:40], blackened[110:], blackened[:, :25], blackened[:, 95:] = 0, 0, 0, 0
    assert_same(one(predictor, blackened, boxes=[(40, 60, 80, 90)]), found, atol=1e-7)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_given_box_is_trusted(passes):
    """Later passes rotate its crop upright, and leave its place and size alone."""

    class Watched(DotEngine):
        seen: list[np.ndarray] = []  # noqa: RUF012

        def __call__(self, crops: np.ndarray) -> HandOutput:
            self.seen = [*self.seen, crops[0].astype(float)]
            return super().__call__(crops)

    engine, box = Watched(), (70, 40, 250, 200)
    crop = one(Predictor(engine, passes=passes, margin=1.25), DOTTED, boxes=[box], handedness="right").crop
    assert crop == CropTransform.around_box(box, 1.25)
    assert len(engine.seen) == passes
    for refined in engine.seen[1:]:
        wrist, knuckle = (engine._dot(refined, channel) for channel in (0, 1))
        assert abs(wrist[0] - knuckle[0]) < 0.02, "the middle knuckle is straight above the wrist"
        assert wrist[1] > knuckle[1]


def test_no_boxes_no_hands(predictor, photo):
    assert predictor(photo, boxes=[]) == []
    assert predictor(photo, boxes=np.zeros((0, 4)), handedness=[]) == []


def test_hands_half_outside_are_answered(predictor, photo):
    """A box beyond the photo's edge shows black there; nothing fails, in photos of any shape."""
    for box in [(-50, -50, 40, 40), (-100, -120, 250, 300), (10, 10, 14, 10.5)]:
        found = one(predictor, photo, boxes=[box])
        assert np.isfinite(found.vertices).all()
        assert 0 <= found.score <= 1
    assert np.isfinite(one(predictor, np.zeros((1, 1, 3), np.uint8)).vertices).all()
    assert np.isfinite(one(predictor, np.zeros((9, 900, 3), np.uint8)).vertices).all()


def test_the_score_tells_a_steady_answer_from_a_wandering_one(predictor, photo):
    assert one(Predictor(DotEngine()), DOTTED).score > 0.95
    scores = [one(predictor, np.roll(photo, shift, axis=0)).score for shift in range(0, 200, 40)]
    assert all(0 <= score <= 1 for score in scores)
    assert min(scores) < 0.95, "a network that guesses does not agree with itself"


def test_later_crops_are_where_the_hand_is(photo):
    """The last crop of the dots is around the hand, not the whole photo."""
    crop = one(Predictor(DotEngine(), passes=2), DOTTED).crop
    found = one(Predictor(DotEngine(), passes=1), DOTTED)
    extent = np.ptp(found.keypoints_image(), axis=0).max()
    assert crop.size < 1.8 * math.sqrt(2) * extent  # the extent along turned axes is at most the diagonal
    np.testing.assert_allclose(crop.center, found.keypoints_image().mean(axis=0), atol=0.3 * extent)
    closer = one(Predictor(DotEngine(), passes=3), DOTTED).crop
    assert closer.size == pytest.approx(crop.size * 1.5 / 1.8, rel=0.02), "the third crop is closer still"


FINE = (0, 0, 9, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [(10, 10, 5, 20)]}, r"Box \(10, 10, 5, 20\) is empty"),
        ({"boxes": [(10, 10, math.nan, 20)]}, "not finite"),
        ({"boxes": [(0, 0, math.inf, 20)]}, "not finite"),
        ({"boxes": [(-1e6, -1e6, 1e6, 1e6)]}, r"is larger than anything of the photo, which is 160 x 203"),
        ({"boxes": [(20, 20, 38000, 100)]}, "is larger than anything"),
        ({"boxes": [FINE, (500, 500, 600, 600)]}, r"Box \(500, 500, 600, 600\) is outside of the photo"),
        ({"boxes": [(10, 10, 13, 12)]}, "is smaller than 4 pixels"),
        ({"boxes": [(1, 2, 3)]}, "wanted x0, y0, x1, y1"),
        ({"boxes": [FINE, (1, 2)]}, "wanted x0, y0, x1, y1"),
        ({"boxes": "1,2,3,4"}, "wanted x0, y0, x1, y1"),
        ({"boxes": 7}, "wanted x0, y0, x1, y1"),
        ({"boxes": [(0, 0, 9, 9, 17)]}, "the last is a score"),
        ({"boxes": [FINE], "handedness": ["left", "right"]}, "a list of 2: .*with boxes one for each"),
        ({"handedness": ["left", "right"]}, "a list of 2: .*with boxes one for each"),
        ({"handedness": "both"}, "'both': wanted 'right', 'left' or 'auto'"),
        ({"handedness": None}, "wanted 'right', 'left' or 'auto'"),
        ({"intrinsics": np.eye(4)}, r"shape \(4, 4\)"),
        ({"focal": 900, "fov": 1.0}, "give one of them"),
        ({"focal": -5}, "focal lengths above zero"),
        ({"focal": 1e300}, r"numbers below 1e\+09"),
        ({"focal": math.nan}, "focal lengths above zero"),
        ({"focal": 1e-30}, "from 1e-06 on"),
        ({"focal": "long"}, "focal is 'long', wanted a number"),
        ({"focal": [900, 900]}, r"focal is \[900, 900\], wanted a number"),
        ({"fov": 60}, "radians between 0 and pi"),
        ({"fov": "wide"}, "fov is 'wide', wanted a number"),
        ({"intrinsics": "phone"}, "Camera matrix 'phone': wanted"),
    ],
)
def test_mistakes_are_named(arguments, message, predictor, photo):
    with pytest.raises(ConfigError, match=message):
        predictor(photo, **arguments)


def test_what_people_have_is_taken(predictor, photo):
    """A detector's rows with scores, one box without brackets, capitals, K as an array."""
    box = (10, 20, 90, 100)
    expected = one(predictor, photo, boxes=[box], handedness="left")
    for boxes in (box, list(box), np.array(box), np.array([[*box, 0.87]]), [[*box, 0.87]]):
        assert_same(one(predictor, photo, boxes=boxes, handedness="Left"), expected, atol=1e-7)
    assert [hand.handedness for hand in predictor(photo, boxes=[box] * 2, handedness=np.array(["left", "RIGHT"]))] == [
        "left",
        "right",
    ]
    K = np.array([[300.0, 0, 79.5], [0, 300, 101], [0, 0, 1]])
    cameras = [{"intrinsics": K}, {"intrinsics": K.tolist()}, {"focal": 300}, {"fov": 2 * math.atan(101.5 / 300)}]
    for camera in cameras:
        np.testing.assert_allclose(one(predictor, photo, **camera).intrinsics.matrix, K)


def test_images_of_every_kind_are_the_photo_they_show(predictor, photo, tmp_path):
    """PIL's, with alpha, of 16 bits, grey: the same pixels, the same hand, on the overlay too."""
    expected = one(predictor, photo)
    opaque = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    for image in (Image.fromarray(photo), Image.fromarray(opaque), opaque, photo.astype(np.uint16) * 257):
        assert_same(one(predictor, image), expected, atol=1e-7)
        np.testing.assert_array_equal(expected.overlay(image), expected.overlay(photo))
    grey = photo[..., 1]
    (found,), (again,) = predictor([grey, Image.fromarray(grey)])
    assert_same(found, one(predictor, np.dstack([grey] * 3)), atol=1e-7)
    assert_same(again, found, atol=1e-7)
    expected.save(tmp_path / "overlay.png", image=Image.fromarray(photo))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), expected.overlay(photo))


def test_several_photos_are_answered_in_turn(predictor, photo):
    """Of a list a list; of an iterator an iterator, that reads no photo before it is asked for."""
    flipped = np.ascontiguousarray(photo[:, ::-1])
    expected = [one(predictor, image, handedness="left") for image in (photo, flipped)]
    asked = []

    def photos():
        for image in (photo, flipped):
            asked.append(len(asked))
            yield image

    lazy = predictor(photos(), handedness="left")
    assert asked == []
    listed, paired = predictor([photo, flipped], handedness="left"), predictor((photo, flipped), handedness="left")
    for answers in (listed, paired, lazy):
        for (found,), wanted in zip(answers, expected, strict=True):
            assert_same(found, wanted, atol=1e-7)
    assert predictor([]) == []
    with pytest.raises(ConfigError, match="one at a time"):
        predictor([photo], boxes=[FINE])


def test_a_hand_is_shown_in_one_line(hand):
    assert re.fullmatch(
        r"<HandPrediction (right|left) \(given\), score \d\.\d\d, box \(-?\d+(, -?\d+){3}\) px, whole image>",
        repr(hand),
    )


def test_the_photo_of_an_overlay_may_be_a_path(hand, photo, tmp_path):
    encoded = encode_image(photo, "png")
    (tmp_path / "photo.png").write_bytes(encoded)
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), encoded, photo):
        hand.save(tmp_path / "overlay.png", image=image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), hand.overlay(photo))
        np.testing.assert_array_equal(hand.overlay(image), hand.overlay(photo))


def test_what_is_no_photo_is_refused(predictor, tmp_path):
    with pytest.raises(ImageError, match=r"No image at .*absent"):
        predictor(tmp_path / "absent.jpg")
    with pytest.raises(ImageError):
        predictor(b"not an image")
    with pytest.raises(ImageError):
        predictor(np.zeros((10, 10, 5), np.uint8))
    with pytest.raises(ImageError, match=r"an open file; give its path, or file\.read\(\)"):
        predictor(io.BytesIO(b"not read"))  # its lines were taken for photographs: no error before the first was read


@pytest.mark.parametrize("passes", [0, 1.5, "3"])
def test_passes_are_at_least_one(passes, engine):
    with pytest.raises(ConfigError, match=f"passes is {passes!r}"):
        Predictor(engine, passes=passes)


def test_what_is_no_detector_is_refused_before_a_photo_is_there(engine):
    """It was called with the first photo: 'str' object is not callable."""
    with pytest.raises(ConfigError, match=r"'none' is no detector: wanted what .*open_detector.* gives, or None"):
        Predictor(engine, detector="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, "2", 1.0])
def test_threads_that_cannot_be_are_refused(threads):
    """A text was told to be a damaged detector, and 0 or less was the number of cores."""
    with pytest.raises(ConfigError, match=f"threads is {threads!r}, wanted a whole number"):
        load_predictor(threads=threads)


# ------------------------------------------------------------------------------------------------- what is made of it


def test_overlays_draw_the_hand_where_it_is(predictor):
    prediction = one(Predictor(DotEngine()), DOTTED)
    before = DOTTED.copy()
    mesh = prediction.overlay(DOTTED)
    bones = overlay_hands(DOTTED, [prediction], skeleton=True)
    np.testing.assert_array_equal(DOTTED, before)
    for drawn in (mesh, bones):
        changed = (drawn != DOTTED).any(axis=-1)
        y, x = np.nonzero(changed)
        vertices = prediction.vertices_image()
        assert vertices[:, 0].min() - 8 <= x.min() <= x.max() <= vertices[:, 0].max() + 8
        assert vertices[:, 1].min() - 8 <= y.min() <= y.max() <= vertices[:, 1].max() + 8
    wrist_x, wrist_y = np.round(DOTS[0] * 0.3 + DOTS[1] * 0.7).astype(int)  # within the palm
    assert (mesh[wrist_y, wrist_x] != DOTTED[wrist_y, wrist_x]).any()
    nothing = overlay_hands(DOTTED, [])
    np.testing.assert_array_equal(nothing, DOTTED)
    assert nothing is not DOTTED
    assert overlay_hands(DOTTED, [], skeleton=True) is not DOTTED, "a copy, drawn on or not"


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".npz", ".json", ".html", ".png", ".jpg"])
def test_every_format_is_written(suffix, hand, photo, tmp_path):
    path = tmp_path / f"hand{suffix}"
    hand.save(path, photo)
    magic = {".glb": b"glTF", ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".ply": b"ply", ".npz": b"PK", ".json": b"{"}
    assert path.read_bytes().startswith(magic.get(suffix, b""))
    assert path.stat().st_size > 1000
    if suffix in (".glb", ".obj", ".ply"):
        import trimesh

        mesh = trimesh.load(path, force="mesh", process=False)
        assert len(mesh.faces) == 1538
        y_up = hand.vertices_cam() * (1, -1, -1)  # where it is, as 3D programs have their axes
        assert len(mesh.vertices) == len(y_up)
        np.testing.assert_allclose(mesh.vertices, y_up, atol=1e-5)
        assert signed_volume(np.asarray(mesh.vertices), np.asarray(mesh.faces)) > 0
    if suffix == ".png":
        np.testing.assert_array_equal(np.asarray(Image.open(path)), hand.overlay(photo))


def test_json_and_npz_hold_what_was_found(hand, tmp_path):
    hand.save(tmp_path / "hand.json")
    hand.save(tmp_path / "hand.npz")
    (record,) = json.loads((tmp_path / "hand.json").read_text())["hands"]
    with np.load(tmp_path / "hand.npz", allow_pickle=False) as arrays:
        for read in (record, {name: arrays[name][0] for name in record if name in arrays}):
            np.testing.assert_allclose(read["vertices"], hand.vertices, atol=1e-6)
            np.testing.assert_allclose(read["keypoints_px"], hand.keypoints_image(), rtol=1e-5)
            np.testing.assert_allclose(read["box_px"], hand.box, rtol=1e-5)
            np.testing.assert_allclose(read["pose"], hand.pose, atol=1e-6)
            in_cam = np.asarray(read["vertices"]) @ np.asarray(read["cam_from_hand_axes"]).T + read["translation"]
            np.testing.assert_allclose(in_cam, hand.vertices_cam(), atol=1e-5)
            assert read["handedness"] == hand.handedness
            assert read["intrinsics_source"] == "default"
            # A reader needs nothing else to draw it: the formula of docs/reference/outputs.md, written out.
            ndc = read["camera_scale_ndc_per_m"] * (np.asarray(read["joints"])[:, :2] + read["camera_translation_m"])
            drawn = ndc * read["crop_size_px"] / 2 + read["crop_center_px"]
            np.testing.assert_allclose(drawn, hand.keypoints_image(), atol=0.01)


def test_a_photo_without_a_hand_has_the_same_arrays_without_rows(hand, tmp_path):
    """Who read `keypoints_px` of a folder's files ended at the first photo without a hand: KeyError."""
    save_hands(tmp_path / "one.npz", [replace(hand, joint_scores=np.ones(21, np.float32))])
    save_hands(tmp_path / "none.npz", [])
    with np.load(tmp_path / "one.npz") as found, np.load(tmp_path / "none.npz") as none:
        of_all = {"version", "joint_names", "bones"}
        assert set(none) == set(found)
        for name in set(found) - of_all:
            assert none[name].shape == (0, *found[name].shape[1:]), name
            assert none[name].dtype.kind == found[name].dtype.kind, name
            assert none[name].dtype == found[name].dtype or none[name].dtype.kind == "U", name


def test_several_hands_share_a_file(predictor, photo, tmp_path):
    hands = predictor(photo, boxes=[(10, 20, 90, 100), (50, 60, 150, 180)], handedness=["left", "right"])
    save_hands(tmp_path / "hands.json", hands)
    found = json.loads((tmp_path / "hands.json").read_text())["hands"]
    assert [one_of["handedness"] for one_of in found] == ["left", "right"]
    assert len({one_of["name"] for one_of in found}) == 2
    save_hands(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text())["hands"] == []


def test_files_that_cannot_be_written_are_refused_by_name(hand, photo, tmp_path):
    with pytest.raises(ExportError, match=r"'\.gltf'; wanted one of \.glb, .*, or a picture: \.png, \.jpg"):
        hand.save(tmp_path / "hand.gltf")
    with pytest.raises(ImageError, match=r"hand\.png is a picture: give the photograph"):
        hand.save(tmp_path / "hand.png")
    with pytest.raises(ExportError, match="absent"):
        hand.save(tmp_path / "absent" / "hand.glb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("convention", ["MANOLayer", "MANO"])
def test_to_smplx_gives_the_same_mesh_in_smplx(convention, hand, tmp_path, capsys):
    """smplx's own classes, fed from a MANO-format pickle of our hand, with rotation matrices and with axis-angle."""
    smplx = pytest.importorskip("smplx", reason='smplx is not installed: pip install -e ".[mano]"')
    arrays = builtin_hand(hand.handedness)
    path = tmp_path / f"MANO_{hand.handedness.upper()}.pkl"
    names = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
    names += ("hands_components", "hands_mean", "hands_coeffs", "J")
    path.write_bytes(pickle.dumps({name: getattr(arrays, name) for name in names}))
    parameters = hand.to_smplx()
    vectors = parameters.pop("axis_angle")
    right = parameters.pop("is_rhand")
    assert right is (hand.handedness == Handedness.RIGHT)
    if convention == "MANOLayer":
        layer = smplx.MANOLayer(str(path), is_rhand=right)
        arguments = parameters
    else:
        layer = smplx.MANO(str(path), is_rhand=right, use_pca=False, flat_hand_mean=True)
        arguments = {**vectors, "betas": parameters["betas"]}
    with torch.no_grad():
        output = layer(**{name: torch.from_numpy(np.asarray(value)) for name, value in arguments.items()})
    np.testing.assert_allclose(output.vertices[0].numpy(), hand.vertices, atol=1e-5)


def test_joints_have_names_distances_and_angles(hand):
    np.testing.assert_array_equal(hand.joint("index_tip"), hand.joints[JOINT_NAMES.index("index_tip")])
    pinch = np.linalg.norm(hand.joints[JOINT_NAMES.index("thumb_tip")] - hand.joints[JOINT_NAMES.index("index_tip")])
    assert hand.distance("thumb_tip", "index_tip") == hand.distance("index_tip", "thumb_tip") == pytest.approx(pinch)
    with pytest.raises(ConfigError, match=r"no joint 'index_tp': did you mean 'index_tip'\? Joints are wrist,"):
        hand.distance("thumb_tip", "index_tp")
    angles = hand.joint_angles()
    assert list(angles) == [name for name in JOINT_NAMES if name != "wrist" and not name.endswith("_tip")]
    wanted = angles_from_pose(flexion_axes(builtin_hand(hand.handedness)), hand.pose)
    np.testing.assert_allclose(angles["ring_pip"], wanted[MANO_JOINT_NAMES.index("ring_pip")], atol=1e-5)


def test_a_mirrored_hand_is_bent_as_much(engine, photo):
    """Curling is curling, of a right hand and of the left one in the mirror."""
    right = one(Predictor(engine), photo, handedness="right").joint_angles()
    left = one(Predictor(engine), np.ascontiguousarray(photo[:, ::-1]), handedness="left").joint_angles()
    np.testing.assert_allclose(list(left.values()), list(right.values()), atol=1e-4)
    assert np.ptp(list(right.values())) > 0.1


def test_hands_are_drawn_over_whatever_the_photo_was_given_as(hand, photo, tmp_path):
    (tmp_path / "photo.png").write_bytes(encode_image(photo))
    wanted = overlay_hands(photo, [hand])
    assert (wanted != photo).any()
    for image in (tmp_path / "photo.png", encode_image(photo), Image.fromarray(photo)):
        np.testing.assert_array_equal(overlay_hands(image, [hand]), wanted)


def test_one_hand_is_a_list_of_one(hand, photo, tmp_path):
    """`overlay_hands(photo, hand)` raised TypeError, and a generator of hands ValueError."""
    for one in (hand, iter([hand]), {1: hand}.values()):
        np.testing.assert_array_equal(overlay_hands(photo, one), overlay_hands(photo, [hand]))
    save_hands(tmp_path / "list.glb", [hand])
    save_hands(tmp_path / "one.glb", hand)
    save_hands(tmp_path / "drawn.png", iter([hand]), photo)
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "list.glb").read_bytes()


@pytest.mark.parametrize(("found", "of"), [(lambda hand: {1: hand}, "int"), (lambda hand: [[hand]], "list")])
def test_what_is_no_hand_is_refused(found, of, hand, photo, tmp_path):
    """The dictionary of `follow_video`, and the answer to several photos, ended in Python's own errors."""
    for use in (lambda what: overlay_hands(photo, what), lambda what: save_hands(tmp_path / "x.glb", what)):
        with pytest.raises(ConfigError, match=rf"^{of} is no hand: .*hands\.values\(\)"):
            use(found(hand))


def test_the_near_hand_hides_the_far_one(hand, photo):
    """Each was drawn at a depth of its own, in pixels of its own scale: a far finger came through a near palm."""
    far = replace(hand, handedness=hand.handedness.other, crop=replace(hand.crop, size=0.6 * hand.crop.size))
    assert far.origin_cam()[2] > hand.origin_cam()[2] + 0.1
    grey = np.full_like(photo, 90)
    alone, bones = overlay_hands(grey, [hand]), overlay_hands(grey, [far], skeleton=True)
    covered = (alone != grey).any(axis=-1)
    assert (overlay_hands(grey, [far]) != grey)[covered].any(), "they overlap"
    inside = binary_erosion(covered, iterations=2)  # at the edge they are mixed
    for both in ([hand, far], [far, hand]):
        np.testing.assert_array_equal(overlay_hands(grey, both)[inside], alone[inside])
        np.testing.assert_array_equal(
            overlay_hands(grey, both, skeleton=True), overlay_hands(bones, [hand], skeleton=True)
        )


def test_hands_that_nobody_photographed_are_saved_with_those_that_were(hand, tmp_path):
    model = handmesh.load_hand("builtin", "Left")
    pinch = model.shaped().posed(handmesh.pose_from_angles(model, handmesh.POSES["pinch"]))
    made = handmesh.MeshHand(pinch.vertices, model.faces, pinch.joints, Handedness.LEFT, name="pinch")
    save_hands(tmp_path / "hands.json", [hand, made])
    both = json.loads((tmp_path / "hands.json").read_text())["hands"]
    assert [one["name"] for one in both] == [f"{hand.handedness}_hand_0", "pinch"]
    with pytest.raises(ExportError, match=r"hands\.png is a picture: a MeshHand has no place in one"):
        save_hands(tmp_path / "hands.png", [hand, made], np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ConfigError, match="Handedness 'both': wanted 'right' or 'left'"):
        handmesh.load_hand("builtin", "both")


def test_type_checkers_see_the_public_names():
    """They read imports, not the table that loads names at first use."""
    tree = ast.parse(Path(handmesh.__file__).read_text(encoding="utf-8"))
    seen = {
        (alias.asname, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(name, home) for name, home in handmesh._HOMES.items()}


def test_the_public_names_are_there():
    """What the package's first page shows."""
    assert handmesh.load_predictor is load_predictor
    assert set(handmesh.__all__) <= set(dir(handmesh))
    for name in handmesh.__all__:
        assert getattr(handmesh, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handmesh.nonsense


# ------------------------------------------------------------------------------------------------- the bundled model

needs_bundled_model = pytest.mark.skipif(
    not bundled_model_path().is_file(), reason="no bundled model: `handmesh train` makes one"
)


@needs_bundled_model
def test_the_bundled_model_is_small_and_says_how_it_was_made():
    assert bundled_model_path().stat().st_size <= 12_000_000
    record = open_engine().record
    assert record["training"]["steps"] > 0
    assert record["hand_sha256"] == builtin_hand().sha256


@needs_bundled_model
def test_the_manuals_command_for_tensorrt_has_the_bundled_models_size():
    """It named crops of 160 px, which a graph of 192 px does not take."""
    manual = Path(__file__).parents[2] / "docs" / "how_to" / "export.md"
    shapes = re.findall(r"crops:\d+x(\d+)x(\d+)x3", manual.read_text(encoding="utf-8"))
    assert set(shapes) == {(str(open_engine().resolution),) * 2}


@needs_bundled_model
def test_the_bundled_model_beats_the_mean_pose_baseline():
    """On scenes nobody trained on, drawn now, whole photo and no hint: in 3D after alignment, and in the image."""
    from handmesh.synth import Backgrounds, SceneRenderer, sample_generator

    renderer = SceneRenderer(builtin_hand(), size=192, backgrounds=Backgrounds(77, count=4))
    scenes = [renderer.render(sample_generator(987_654_321, index)) for index in range(24)]
    predictor = load_predictor()
    answers = [predictor(scene.image, max_hands=1) for scene in scenes]
    assert sum(map(len, answers)) >= 0.6 * len(scenes)
    scenes = [scene for scene, hands in zip(scenes, answers, strict=True) if hands]
    found = [hand for hands in answers for hand in hands]
    truth = np.stack([scene.joints for scene in scenes]).astype(float)
    own_frame = np.stack(
        [(scene.joints - scene.joints[0]).astype(float) @ scene.pose[0].astype(float) for scene in scenes]
    )
    constant = 1000 * pa_rigid_mean_error(truth, own_frame.mean(axis=0)).mean()
    ours = 1000 * pa_rigid_mean_error(truth, np.stack([hand.joints for hand in found])).mean()
    assert ours < 0.9 * constant, f"{ours:.1f} mm, the mean-pose baseline {constant:.1f} mm"
    box_errors = []
    for scene, hand in zip(scenes, found, strict=True):
        side = np.ptp(scene.keypoints, axis=0).max()
        box_errors.append(np.linalg.norm(hand.keypoints_image() - scene.keypoints, axis=-1).mean() / side)
    assert np.median(box_errors) < 0.2


def test_predictions_are_values(hand):
    with pytest.raises(AttributeError):
        hand.score = 0.5
    assert replace(hand, score=0.5).score == 0.5
    assert Path(handmesh.__file__).is_file()


# ------------------------------------------------------------------------------------------------- hands, and none


FAR = draw(
    [hand_at(2650, 700, length=40, angle=0.4, side="left")], size=(3200, 2400)
)  # dots of half a pixel in the whole photo's crop


def sure_engine(confidence: float = 0.95) -> MarkerEngine:
    engine = MarkerEngine(heads=True)
    engine.confidence = confidence
    return engine


def test_a_hand_of_a_low_score_is_none_unless_it_is_in_a_given_box():
    """So a photograph without a hand gives an empty list; one that cannot tell answers as ever."""
    image = draw([hand_at(160, 160, side="right")])
    cases = (
        (MIN_SCORE - 0.05, MIN_SCORE, 0),
        (0.8, MIN_SCORE, 1),
        (0.8, 0.9, 0),
        (0.4, 0.3, 1),
    )
    for confidence, least, count in cases:
        assert len(Predictor(sure_engine(confidence))(image, min_score=least)) == count
    assert Predictor(sure_engine(0.4))(image) == []
    assert len(Predictor(sure_engine(0.4))(image, boxes=(100, 100, 220, 220))) == 1
    assert [len(hands) for hands in Predictor(sure_engine(0.4))([image, image], min_score=0.2)] == [1, 1]
    assert len(Predictor(MarkerEngine())(image, min_score=1)) == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), "0.7", None])
def test_a_score_that_no_hand_can_have_is_refused(wrong):
    with pytest.raises(ConfigError, match="min_score"):
        Predictor(sure_engine())(FAR, min_score=wrong)


def test_tracking_looks_at_the_whole_picture_where_nobody_finds_hands():
    engine = sure_engine()
    tracker = Tracker(Predictor(engine), handedness="left")
    assert tracker(FAR, 0.0) == []
    assert engine.crop_count == tracker.crop_count == 3


class Finder:
    """Says what it is told."""

    name, searches = "finder", True

    def __init__(self, *found: Detection) -> None:
        self.found = list(found)

    def __call__(self, image):
        return list(self.found)


def found(x: float, y: float, side: str | None, score: float, **more) -> Detection:
    """A hand whose wrist is at x, y and that is as high as `hand_at` draws it."""
    handedness = None if side is None else Handedness(side)
    return Detection((x - 45, y - 100, x + 45, y + 10), handedness, score, "hand detector", **more)


PAIR = draw([hand_at(90, 170, side="right"), hand_at(240, 170, side="left", angle=0.5)], size=(320, 240))


@pytest.mark.parametrize("finger", FINGER_NAMES)
@pytest.mark.parametrize("detected", [False, True])
def test_a_lost_finger_lowers_the_score_of_a_sure_hand(finger, detected):
    """A raised index finger that was missing had cost nothing. The hand is still there, so it is not left out."""

    class OneFinger(MarkerEngine):
        joint_score = 0.9

        def __call__(self, crops: np.ndarray) -> HandOutput:
            joints = np.full((len(crops), 21), 0.9, np.float32)
            joints[:, [name.startswith(finger) for name in JOINT_NAMES]] = self.joint_score
            return super().__call__(crops)._replace(joint_confidence=joints)

    engine = OneFinger(heads=True)
    engine.record["model"]["joint_confidence_head"] = True
    finder = Finder(found(90, 170, "right", 0.95, rotation=0.0, handedness_score=0.95, is_probability=True))
    predictor = Predictor(engine, detector=finder if detected else None)
    image = PAIR if detected else draw([hand_at(160, 160, side="right")])

    def scores(confidence: float) -> list[float]:
        engine.confidence, answers = confidence, []
        for engine.joint_score in (0.9, 0.6, 0.4, 0.2, 0.03):
            answers.append(predictor(image, handedness="right", min_score=0)[0].score)
        return answers

    sure = scores(0.97)
    assert sure == sorted(sure, reverse=True)
    assert sure[0] > 0.96
    assert 0.7 < sure[3] < sure[0] - 0.05, "either may be"
    assert MIN_SCORE <= sure[-1] < 0.75
    assert predictor(image, handedness="right") != []
    unsure = scores(0.15)
    assert unsure[0] < MIN_SCORE
    assert unsure == pytest.approx([unsure[0]] * 5), "it is doubted already"


def test_every_hand_is_found_once_and_the_most_certain_first():
    engine = sure_engine(0.98)
    finder = Finder(
        found(240, 170, "left", 0.7, rotation=-0.5, handedness_score=0.95, is_probability=True),
        found(90, 170, "right", 0.95, rotation=0.0, handedness_score=0.95, is_probability=True),
        found(92, 172, "right", 0.6, rotation=0.0, handedness_score=0.95, is_probability=True),
    )
    predictor = Predictor(engine, detector=finder)
    hands = predictor(PAIR)
    assert [(hand.handedness, hand.handedness_source) for hand in hands] == [("right", "found"), ("left", "found")]
    assert engine.crop_count == 3, "one crop each"
    for hand, wrist in zip(hands, ((90, 170), (240, 170)), strict=True):
        np.testing.assert_allclose(hand.keypoints_image()[WRIST], wrist, atol=1.5)
        assert hand.source == "hand detector"
    assert 0.96 < hands[1].score < 0.98 < hands[0].score < 0.995, "the detector is surer of the one"
    assert [hand.handedness for hand in predictor(PAIR, max_hands=1)] == ["right"]
    assert [hand.handedness for hand in predictor(PAIR, min_score=0.98)] == ["right"]
    assert Predictor(engine, detector=Finder())(PAIR) == []
    assert [len(one) for one in predictor([PAIR, PAIR])] == [2, 2]
    scores = [hand.score for hand in predictor.predict_detections(read_photo(PAIR), finder.found)]
    assert (scores[1], scores[0]) == (hands[0].score, hands[1].score)
    least = np.sort(scores)[1]
    likely = predictor.predict_detections(read_photo(PAIR), finder.found, min_score=least)
    assert [hand.score for hand in likely] == [score for score in scores if score >= least], "in their order"


class UprightEngine(MarkerEngine):
    """Sure of hands that point up alone."""

    def _answer(self, crop):
        wrist, knuckle = self._dot(crop, 0), self._dot(crop, 2)
        upright = wrist is not None and knuckle is not None and abs(knuckle[0] - wrist[0]) < 0.05
        self.confidence = 0.98 if upright else self.otherwise
        return super()._answer(crop)


@pytest.mark.parametrize(("otherwise", "crops"), [(0.6, 2), (0.97, 1), (0.005, 1)])
def test_where_it_is_open_whether_there_is_a_hand_a_second_look_decides(otherwise, crops):
    """Closer, and turned as the first look says that the hand points; none where there surely is a hand, or none."""
    engine = UprightEngine(heads=True)
    engine.otherwise = otherwise
    wrongly_turned = found(90, 170, "right", 0.8, rotation=0.4, handedness_score=0.95, is_probability=True)
    (hand,) = Predictor(engine, detector=Finder(wrongly_turned))(PAIR, min_score=0)
    assert engine.crop_count == crops
    assert (hand.score > 0.9) == (otherwise > 0.1)
    np.testing.assert_allclose(hand.keypoints_image()[WRIST], (90, 170), atol=1.5)
    looked_at = 1.5 * 110 if crops == 1 else 1.45 * np.ptp(hand.keypoints_image(), axis=0).max()
    assert hand.crop.size == pytest.approx(looked_at, rel=0.02)


def test_a_side_that_the_detector_mistakes_is_mended_by_the_network():
    finder = Finder(found(240, 170, "right", 0.9, rotation=-0.5, handedness_score=0.99, is_probability=True))
    (hand,) = Predictor(sure_engine(), detector=finder)(PAIR)
    assert (hand.handedness, hand.handedness_source) == ("left", "found")
    (hand,) = Predictor(sure_engine(), detector=finder)(PAIR, handedness="right")
    assert (hand.handedness, hand.handedness_source) == ("right", "given")


class MisledEngine(MarkerEngine):
    """Takes a left hand for the half of a right one, and closer for another; what it is shown then, it sees."""

    looks = 0

    def __call__(self, crops):
        self.looks += 1
        return super().__call__(crops)

    def _answer(self, crop):
        camera, pose, betas, vertices, joints, confidence, right, *rest = super()._answer(crop)
        if self.looks <= 2:
            wrist = joints[WRIST, :2]
            camera = np.array([camera[0] / 2, *(2 * camera[1:] + wrist)])  # half as large, its wrist where it was
            confidence, right = np.float32((0.6, 0.8)[self.looks - 1]), np.float32(0.05)
        return camera, pose, betas, vertices, joints, confidence, right, *rest


def test_the_other_side_is_looked_for_where_the_detector_said():
    """Closer to what the wrong side's answer took for the hand fingers were cut off: one that pointed came out bent."""
    engine = MisledEngine(heads=True)
    finder = Finder(found(240, 170, "right", 0.9, rotation=-0.5, handedness_score=0.6, is_probability=True))
    (hand,) = Predictor(engine, detector=finder)(PAIR)
    assert engine.looks == 3, "as a right hand, closer, and as a left one"
    assert hand.handedness == "left"
    wrist, knuckle, _ = hand_at(240, 170, side="left", angle=0.5)
    np.testing.assert_allclose(hand.keypoints_image()[[WRIST, KNUCKLE]], (wrist, knuckle), atol=1.5)
    assert hand.crop.center == pytest.approx((240, 125))
    assert hand.crop.size == pytest.approx(1.5 * 110)


def test_a_detector_that_knows_no_direction_takes_all_passes():
    engine = sure_engine()
    (hand,) = Predictor(engine, detector=Finder(found(240, 170, "left", 0.9)))(PAIR)
    assert engine.crop_count == 3
    assert hand.handedness == "left"
    assert hand.score == pytest.approx(0.95), "a score that is no probability says nothing about it"


def test_a_given_box_asks_no_detector():
    (hand,) = Predictor(sure_engine(), detector=Finder())(PAIR, boxes=(45, 70, 135, 180))
    assert hand.source == "given box"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"max_hands": 0}, "max_hands"), ({"max_hands": 2.0}, "max_hands"), ({"search": "tiles"}, "search"),
     ({"search": "thorough"}, "thorough search"),
     ({"search": "thorough", "boxes": (45, 70, 135, 180)}, "leave it out")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        Predictor(sure_engine(), detector=Finder())(PAIR, **arguments)


def test_without_a_detector_nothing_is_searched_thoroughly():
    with pytest.raises(ConfigError, match="leave it out"):
        Predictor(sure_engine())(PAIR, search="thorough")


def test_limits_may_be_numpys_numbers():
    """A score of an array and a count from one were no numbers."""
    finder = Finder(found(90, 170, "left", 0.9), found(240, 170, "left", 0.9))
    hands = Predictor(sure_engine(), detector=finder)(PAIR, min_score=np.float32(0.25), max_hands=np.int64(1))
    assert len(hands) == 1
