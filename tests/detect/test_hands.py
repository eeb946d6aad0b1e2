"""The bundled detector: hands of renders that it never saw, where they are and none where there are none."""

from __future__ import annotations

import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import handmesh
from handmesh.detect import HandDetector, box_iou
from handmesh.detect.hands import BUNDLED_DETECTOR
from handmesh.errors import CheckpointError
from handmesh.files.image import open_photo, read_image
from handmesh.predict import load_predictor
from handmesh.synth.backgrounds import Backgrounds

SAMPLES = sorted((Path(handmesh.__file__).parent / "assets" / "samples").glob("*.jpg"))


@pytest.fixture(scope="module")
def predictor():
    return load_predictor(threads=1)


def on_grey(*placed, size=(640, 480)):
    """Samples of so many pixels, each at a corner, on grey."""
    canvas = np.full((size[1], size[0], 3), 110, np.uint8)
    for path, side, (x, y) in placed:
        canvas[y : y + side, x : x + side] = cv2.resize(read_image(path), (side, side), interpolation=cv2.INTER_AREA)
    return canvas


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_hand_of_each_sample_is_found_once(predictor, path):
    image = on_grey((path, 300, (200, 100)))
    (hand,) = predictor(image)
    x0, y0, x1, y1 = hand.box
    assert 200 <= (x0 + x1) / 2 <= 500
    assert 100 <= (y0 + y1) / 2 <= 400
    assert 90 < max(x1 - x0, y1 - y0) < 330
    assert hand.source == "hand detector"
    assert 0.5 <= hand.score <= 1


def test_hands_of_three_sizes_are_all_found(predictor):
    big, middle, small = SAMPLES[0], SAMPLES[2], SAMPLES[5]
    image = on_grey((big, 330, (10, 100)), (middle, 180, (380, 20)), (small, 110, (460, 300)))
    hands = predictor(image)
    assert len(hands) == 3
    for (x, y), side in (((10, 100), 330), ((380, 20), 180), ((460, 300), 110)):
        assert any(box_iou(hand.box, (x, y, x + side, y + side)) > 0.15 for hand in hands)


def test_a_small_hand_of_a_large_photo_is_found_thoroughly(predictor):
    """Four per cent of a 12-megapixel photograph: 13 of the 320 pixels that a fast look has."""
    image = np.full((3000, 4000, 3), 110, np.uint8)
    image[2000:2260, 3200:3460] = cv2.resize(read_image(SAMPLES[5]), (260, 260), interpolation=cv2.INTER_AREA)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    (hand,) = predictor(file.getvalue(), search="thorough", min_score=0.3)
    x0, y0, x1, y1 = hand.box
    assert 3200 < (x0 + x1) / 2 < 3460
    assert 2000 < (y0 + y1) / 2 < 2260


def test_a_large_photo_is_decoded_coarsely_and_its_hand_is_where_it_was(predictor, tmp_path):
    image = cv2.resize(on_grey((SAMPLES[2], 300, (200, 100))), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    for orientation in (1, 6):
        path = tmp_path / f"{orientation}.jpg"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(path, "JPEG", quality=95, exif=exif)
        large = open_photo(path)
        (coarse,) = predictor(large)
        assert 1 not in large._decoded, "the pixels of the whole photograph were not needed"
        (fine,) = predictor(read_image(path))
        assert box_iou(coarse.box, fine.box) > 0.9


def test_a_turned_photo_has_its_hand_turned(predictor):
    """The detector says which way a hand points: turned by 90 degrees, so does its crop."""
    image = on_grey((SAMPLES[2], 300, (90, 90)), size=(480, 480))
    detector = HandDetector(threads=1)
    (plain,) = detector(image)[:1]
    (turned,) = detector(np.ascontiguousarray(np.rot90(image)))[:1]
    # np.rot90 turns the picture anticlockwise, so the crop has to turn it back, clockwise, by as much.
    assert plain.rotation is not None
    assert turned.rotation is not None
    assert math.cos(turned.rotation - plain.rotation - math.pi / 2) > 0.7


def test_there_is_no_hand_where_there_is_none(predictor):
    backgrounds = Backgrounds(seed=5, count=24, held_out=True)
    rng = np.random.default_rng(2)
    pictures = [backgrounds.sample(rng, 320) for _ in range(24)]
    pictures += [np.full((240, 320, 3), value, np.uint8) for value in (0, 110, 255)]
    pictures += [rng.integers(0, 255, (200, 300, 3), np.uint8) for _ in range(3)]
    assert sum(map(len, predictor(pictures))) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 290), (290, 3), (16, 16), (17, 33)])
def test_pictures_of_any_shape_are_looked_at(predictor, shape):
    assert predictor(np.full((*shape, 3), 90, np.uint8), search="thorough") == []


def test_a_later_versions_detector_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(BUNDLED_DETECTOR)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"format": 1', '"format": 2')
    onnx.save(model, tmp_path / "later.onnx")
    with pytest.raises(CheckpointError, match="has detector format 2, this version reads 1"):
        HandDetector(tmp_path / "later.onnx")


def test_it_is_small():
    assert BUNDLED_DETECTOR.stat().st_size < 8_000_000
