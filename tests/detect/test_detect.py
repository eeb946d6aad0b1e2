"""Where hands are: boxes from networks whose answers are known."""

import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from marker_hands import MarkerEngine, draw, hand_at

from handmesh.detect import (
    Detection,
    GivenBoxes,
    MediaPipeHands,
    PalmDetector,
    WholeImage,
    box_iou,
    deduplicate,
    open_detector,
)
from handmesh.detect.mediapipe import handedness_from_mediapipe
from handmesh.detect.palm import decode_palms, palm_anchors
from handmesh.errors import AssetError, ConfigError
from handmesh.files.image import read_photo
from handmesh.hand import Handedness
from handmesh.predict import Predictor

RIGHT, LEFT = Handedness.RIGHT, Handedness.LEFT


def test_overlap_is_intersection_over_union():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def found(box, side, score):
    return Detection(box, side, score, "mediapipe")


def test_one_hand_found_twice_is_one_and_crossing_hands_are_two():
    right, again = found((0, 0, 100, 100), RIGHT, 0.8), found((5, 5, 105, 110), RIGHT, 0.9)
    crossing = found((40, 0, 140, 100), LEFT, 0.7)
    as_left = found((2, 2, 102, 102), LEFT, 0.3)  # the same hand, called the other
    assert deduplicate([right, again, crossing, as_left]) == [again, crossing]


def test_fingers_are_no_hand_of_their_own():
    """MediaPipe 0.10.21 on a frame of FreiHAND: a right hand, and a smaller right hand in its fingers."""
    hand, fingers = found((63, 83, 116, 150), RIGHT, 0.95), found((64, 115, 104, 149), RIGHT, 0.83)
    assert deduplicate([fingers, hand]) == [hand]
    other = found((64, 115, 104, 149), LEFT, 0.83)
    assert len(deduplicate([other, hand])) == 2, "of the other side it may be a hand that holds it"


def palms(*hands):
    """The network's tensors for palms ((x, y) centre, side, turn of the fingers from up), all in input pixels."""
    values, logits = np.zeros((2016, 18)), np.full(2016, -9.0)
    anchors = palm_anchors()
    for (x, y), side, turn in hands:
        index = int(np.argmin(np.linalg.norm(anchors - (x, y), axis=1)))
        along = np.array([np.sin(turn), -np.cos(turn)])
        points = np.tile([x, y], (7, 1)).astype(float)
        points[0] -= 0.5 * side * along
        points[2] += 0.5 * side * along
        values[index] = [*(np.array([x, y]) - anchors[index]), side, side, *(points - anchors[index]).ravel()]
        logits[index] = 3.0
        # The neighbour fires as well, less surely and a little off: it is to be suppressed.
        values[index + 1] = values[index] + 1
        logits[index + 1] = 1.0
    return values, logits


def test_palms_become_hands():
    anchors = palm_anchors()
    assert anchors.shape == (2016, 2)
    assert anchors[0].tolist() == [4, 4]
    assert anchors[2].tolist() == [12, 4]
    assert anchors[1152].tolist() == [8, 8]
    hands = decode_palms(*palms(((60, 80), 30, 0.0), ((150, 100), 20, np.pi / 2)), 0.5)
    assert len(hands) == 2
    (up, score), (right, _) = sorted(hands, key=lambda hand: hand[0][0])
    assert score == pytest.approx(1 / (1 + np.exp(-3)))
    half = 2.6 / 1.5 / 2
    np.testing.assert_allclose(up, [60 - 30 * half, 80 - 15 - 30 * half, 60 + 30 * half, 80 - 15 + 30 * half])
    np.testing.assert_allclose(right, [160 - 20 * half, 100 - 20 * half, 160 + 20 * half, 100 + 20 * half])


@pytest.fixture
def palm_file(tmp_path):
    """A network of the palm detector's form that finds one palm whatever it sees."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values, logits = palms(((96, 96), 32, 0.0))
    constants = {"values": values[None], "logits": logits[None, :, None], "none": np.zeros((1, 1, 1))}
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),  # (1, 192)
        helper.make_node("ReduceMean", ["mean"], ["level"], axes=[1], keepdims=1),  # (1, 1)
        helper.make_node("Reshape", ["level", "shape"], ["level3"]),
        helper.make_node("Mul", ["level3", "none"], ["nothing"]),
        helper.make_node("Add", ["values", "nothing"], ["regressors"]),
        helper.make_node("Add", ["logits", "nothing"], ["classificators"]),
    ]
    graph = helper.make_graph(
        nodes,
        "palms",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 192, 192, 3])],
        [
            helper.make_tensor_value_info("regressors", TensorProto.FLOAT, [1, 2016, 18]),
            helper.make_tensor_value_info("classificators", TensorProto.FLOAT, [1, 2016, 1]),
        ],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
        + [numpy_helper.from_array(np.array([1, 1, 1], np.int64), "shape")],
    )
    path = tmp_path / "palm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_the_palm_network_runs_and_boxes_lie_in_the_photograph(palm_file):
    """A wide photograph is padded above and below: the middle of the input is the middle of the photograph."""
    detector = open_detector(str(palm_file))
    (hand,) = detector(np.zeros((240, 480, 3), np.uint8))
    assert hand.handedness is None
    scale = 480 / 192
    half = scale * 32 * 2.6 / 1.5 / 2
    middle = (scale * 96 - 0.5, 240 / 2 - 0.5 - scale * 16)
    np.testing.assert_allclose(
        hand.box, [middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half], atol=1e-3
    )


@pytest.mark.parametrize("name", ["palm", "mediapipe"])
def test_threads_may_share_a_detector(name, palm_file, monkeypatch):
    """OpenCV's networks and MediaPipe's graphs hold one picture: of two threads one got the other's hands, or an error.

    Here one is in work until it has seen whether another comes in.
    """
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("0.10.21"))
    detector = open_detector(str(palm_file) if name == "palm" else "mediapipe")
    network, steps = (detector._network, ("setInput", "forward")) if name == "palm" else (detector._hands, ("process",))
    inside, most = [], []

    class Watched:
        def __getattr__(self, step):
            def called(*arguments):
                if step == steps[0]:
                    inside.append(step)
                most.append(len(inside))
                time.sleep(0.02)
                answer = getattr(network, step)(*arguments)
                if step == steps[-1]:
                    inside.pop()
                return answer

            return called

    monkeypatch.setattr(detector, "_network" if name == "palm" else "_hands", Watched())
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(detector, [np.zeros((60, 80, 3), np.uint8)] * 6))
    assert max(most) == 1


def test_what_is_no_palm_network_is_named(tmp_path):
    with pytest.raises(AssetError, match="opencv_zoo"):
        PalmDetector(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(AssetError, match="cannot be read"):
        PalmDetector(tmp_path / "broken.onnx")


def test_mediapipe_names_sides_as_its_version_does():
    """0.10.21 calls a right hand "Left", for it assumes a selfie; newer versions call the same hand "Right"."""
    assert handedness_from_mediapipe("Left", "0.10.21") == RIGHT
    assert handedness_from_mediapipe("Right", "0.10.9") == LEFT
    assert handedness_from_mediapipe("Right", "0.10.30") == RIGHT
    assert handedness_from_mediapipe("Left", "1.2.2") == LEFT


def fake_mediapipe(version):
    """A module with MediaPipe's classes that finds one hand in the left half of every picture."""
    name = types.SimpleNamespace
    marks = [name(x=0.1 + 0.01 * i, y=0.2 + 0.02 * i) for i in range(21)]

    class Hands:
        def __init__(self, **options):
            assert options["static_image_mode"]

        def process(self, image):
            side = name(classification=[name(label="Left", score=0.9)])
            return name(multi_hand_landmarks=[name(landmark=marks)], multi_handedness=[side])

    module = types.ModuleType("mediapipe")
    module.__version__ = version
    if version < "0.10.30":
        module.solutions = name(hands=name(Hands=Hands))
    return module


def test_mediapipe_is_asked_and_understood(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("0.10.21"))
    (hand,) = MediaPipeHands()(np.zeros((100, 200, 3), np.uint8))
    assert hand.handedness == RIGHT
    np.testing.assert_allclose(hand.box, [19.5, 19.5, 59.5, 59.5])
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("0.10.35"))
    with pytest.raises(ConfigError, match=r"mediapipe<0\.10\.30"):
        MediaPipeHands()


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[detect\]"'):
        open_detector("mediapipe")
    with pytest.raises(ConfigError, match="handmesh, none, mediapipe"):
        open_detector("yolo")
    assert open_detector("none") is None


def test_those_that_know_say_the_same_of_every_picture():
    image = np.zeros((20, 30, 3), np.uint8)
    assert WholeImage()(image)[0].box == (-0.5, -0.5, 29.5, 19.5)
    assert [d.box for d in GivenBoxes([(1, 2, 13, 14)], LEFT)(image)] == [(1, 2, 13, 14)]


def test_a_photograph_is_predicted_where_the_detector_says():
    class Finder:
        name, searches = "finder", True

        def __call__(self, image):
            return [found((80, 60, 170, 200), LEFT, 0.9)]

    photo = read_photo(draw([hand_at(120, 170), hand_at(260, 170)]))
    (hand,) = Predictor(MarkerEngine(), detector=Finder())(photo)
    assert (hand.handedness, hand.handedness_source, hand.source) == (LEFT, "found", "mediapipe")
    np.testing.assert_allclose(hand.keypoints_image()[0], (120, 170), atol=1.0)
    (hand,) = Predictor(MarkerEngine(), detector=Finder())(photo, handedness="right")
    assert hand.handedness == RIGHT, "who says it knows it"


def test_given_boxes_are_of_the_picture():
    """`handmesh video clip.mp4 --box=-1e7,-1e7,1e7,1e7` ended in cv2.error; a stream's box the same."""
    for box, word in (((-1e7, -1e7, 1e7, 1e7), "larger"), ((40, 40, 90, 90), "outside"), ((5, 5, 7, 7), "smaller")):
        with pytest.raises(ConfigError, match=word):
            GivenBoxes([box])(np.zeros((20, 30, 3), np.uint8))


def test_a_detection_outside_of_the_photo_is_no_hand():
    class Finder:
        name, searches = "finder", True

        def __call__(self, image):
            return [found((400, 60, 470, 200), LEFT, 0.9), found((80, 60, 170, 200), LEFT, 0.8)]

    photo = read_photo(draw([hand_at(120, 170)]))
    assert len(Predictor(MarkerEngine(), detector=Finder())(photo)) == 1
