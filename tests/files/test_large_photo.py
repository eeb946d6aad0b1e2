"""Large JPEGs are decoded no finer than needed, and every crop is where it would be in the whole photograph."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from handmesh.errors import ImageError
from handmesh.files import image as image_module
from handmesh.files.containers import jpeg_coefficients, trimmed
from handmesh.files.image import LargePhoto, Photo, open_photo, read_photo
from handmesh.geometry.crop import CropTransform
from handmesh.predict import load_predictor

ROOT = str(Path(__file__).resolve().parents[2])
WAVE = 2 * np.pi / 80  # radians per pixel
WIDTH, HEIGHT = 1603, 1309  # no multiples of 8: the last blocks of a decoding are incomplete


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(image_module, "LARGE_PIXELS", 0)


def jpeg(tmp_path, orientation: int, mode: str = "RGB", **options):
    """Waves to the right and downwards: how a crop differs from another says how far they are apart."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 128 + 60 * np.sin(WAVE * x) + 60 * np.sin(WAVE * y)
    picture = PIL.Image.fromarray(waves.round().astype(np.uint8)).convert("RGB").convert(mode)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, exif=exif.tobytes(), subsampling=0, **options)
    path = tmp_path / "photo.jpg"
    path.write_bytes(buffer.getvalue())
    return path


def stored_from_upright(points: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels of the upright photograph -> pixels as stored (EXIF 2.32, 4.6.4)."""
    width, height = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
    x, y = points.T
    x = width - 1 - x if orientation in (2, 3, 6, 7) else x
    y = height - 1 - y if orientation in (3, 4, 7, 8) else y
    return np.column_stack([x, y] if orientation < 5 else [y, x])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_where_they_are_in_the_whole_photograph(orientation, tmp_path):
    """Within half a pixel of the photograph, in all eight EXIF orientations and at every scale."""
    path = jpeg(tmp_path, orientation, progressive=orientation == 2)
    large, whole = open_photo(path), read_photo(path)
    assert isinstance(large, LargePhoto)
    assert large.size == whole.size
    width, height = whole.size
    largest = 0.0
    steps = (2 * np.arange(128) + 1) / 128 - 1
    for side, factor in ((1200, 8), (560, 4), (300, 2), (140, 1)):
        for corner in (-1, 1):
            center = (width / 2 + corner * (width - side) / 2.2, height / 2 - corner * (height - side) / 2.2)
            crop = CropTransform(center, side, rotation=0.4 * corner, mirror=corner > 0)
            expected, got = (photo.warp(crop, 128).astype(float) for photo in (whole, large))
            # Away from the photograph's edge, where black begins.
            points = crop.to_image(np.stack(np.meshgrid(steps, steps), axis=-1))
            inside = ((points > 20) & (points < np.array(whole.size) - 21)).all(axis=-1)
            assert inside.mean() > 0.5
            # A wave shifted by s differs from itself by s times its derivative; coarser decoding also flattens it.
            difference = (got - expected)[inside].mean(axis=-1)
            stored = stored_from_upright(points[inside], orientation)
            shape = np.column_stack([np.cos(WAVE * stored), np.sin(WAVE * stored), np.ones(len(stored))])
            shift = np.linalg.lstsq(shape, difference, rcond=None)[0][:2] / (60 * WAVE)
            assert np.abs(shift).max() < 0.5, (side, corner, shift)
            largest = max(largest, float(np.abs(shift).max()))
            assert factor in large._decoded
    assert 0 < largest < 0.2


def test_only_what_crops_need_is_decoded(tmp_path):
    large = open_photo(jpeg(tmp_path, 1))
    large.warp(CropTransform.whole_image(*large.size), 128)
    assert list(large._decoded) == [8]
    np.testing.assert_array_equal(large.image, read_photo(tmp_path / "photo.jpg").image)


MEASURED = """
import contextlib, pathlib, re, sys
import numpy, PIL.JpegImagePlugin
from handmesh.files.image import open_photo

def peak():
    return 1024 * int(re.search("VmHWM:(.*)kB", pathlib.Path("/proc/self/status").read_text())[1])

@contextlib.contextmanager
def decoding(pixels, decoder_bytes, forget):
    before = peak()
    yield
    print(pixels, decoder_bytes, peak() - before)

open_photo(sys.argv[1], decoding=decoding).overview(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory the way Linux reports it")
@pytest.mark.parametrize(
    ("mode", "options", "bytes_per_pixel"),
    [
        ("RGB", {"subsampling": 0}, 0),
        ("RGB", {"progressive": True}, 3),
        ("RGB", {"progressive": True, "subsampling": 0}, 6),
        ("CMYK", {"progressive": True, "subsampling": 0}, 8),
    ],
)
def test_a_reduced_photograph_takes_the_memory_that_was_set_aside(mode, options, bytes_per_pixel, tmp_path):
    """Of a progressive one all coefficients are held, however small it is decoded: 14 times what was set aside."""
    size = 3203, 2401
    PIL.Image.linear_gradient("L").resize(size).convert("RGB").convert(mode).save(tmp_path / "photo.jpg", **options)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "photo.jpg")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ROOT})
    pixels, decoder_bytes, taken = map(int, said.stdout.split())
    assert pixels == (size[0] // 8) * (size[1] // 8)
    assert decoder_bytes == pytest.approx(bytes_per_pixel * size[0] * size[1], rel=0.02)
    assert 0.8 * decoder_bytes <= taken < decoder_bytes + 30 * pixels


def test_of_one_component_after_the_other_all_coefficients_are_held(tmp_path):
    content = trimmed(jpeg(tmp_path, 1).read_bytes(), "JPEG", "photo")
    assert jpeg_coefficients(content) == 0
    scan = content.index(b"\xff\xda")
    assert content[scan + 4] == 3
    one_at_a_time = content[: scan + 4] + b"\1" + content[scan + 5 :]
    assert jpeg_coefficients(one_at_a_time) == 3 * 1608 * 1312


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_kinds_of_jpeg(mode, tmp_path):
    path = jpeg(tmp_path, 6, mode)
    large, whole = open_photo(path), read_photo(path)
    crop = CropTransform((700, 800), 1000)
    difference = large.warp(crop, 100).astype(float) - whole.warp(crop, 100)
    assert np.abs(difference[2:-2, 2:-2]).max() < 8


def test_hands_of_a_large_photograph_are_the_same(model_file, tmp_path, scene):
    picture = PIL.Image.fromarray(scene.image).resize((1600, 1600), PIL.Image.Resampling.BICUBIC)
    picture.save(tmp_path / "hand.jpg", quality=95)
    predictor = load_predictor(model_file, detector=None, passes=1)
    (coarse,), (exact,) = predictor(open_photo(tmp_path / "hand.jpg")), predictor(read_photo(tmp_path / "hand.jpg"))
    assert coarse.box == pytest.approx(exact.box, abs=8)  # of 1600
    assert coarse.intrinsics == exact.intrinsics
    # In Python a path was decoded in full: of some photos another hand than `predict` and the service gave.
    encoded = (tmp_path / "hand.jpg").read_bytes()
    for same in (tmp_path / "hand.jpg", encoded, bytearray(encoded)):
        np.testing.assert_array_equal(predictor(same)[0].vertices, coarse.vertices)
    pixels = np.asarray(PIL.Image.open(tmp_path / "hand.jpg"))
    np.testing.assert_array_equal(predictor(pixels)[0].vertices, exact.vertices)


def test_small_photographs_and_other_formats_are_simply_read(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (90, 80)).save(tmp_path / "photo.png")
    assert isinstance(open_photo(tmp_path / "photo.png"), Photo)
    monkeypatch.setattr(image_module, "LARGE_PIXELS", 10**7)
    assert isinstance(open_photo(jpeg(tmp_path, 1)), Photo)


def test_damage_is_found_when_a_crop_is_cut(tmp_path):
    path = jpeg(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:20_000])
    large = open_photo(path)
    with pytest.raises(ImageError, match=r"photo\.jpg is a damaged or truncated JPEG"):
        large.warp(CropTransform.whole_image(*large.size), 64)
    with pytest.raises(ImageError, match="No image at"):
        open_photo(tmp_path / "absent.jpg")
