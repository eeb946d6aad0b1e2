"""Engines: what leaves them is the network's own answer, as numpy arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from handmesh.checkpoint import save_model
from handmesh.engine import BUNDLED_MODEL, TorchEngine, bundled_model_path, open_engine
from handmesh.errors import CheckpointError
from handmesh.hand import HandOutput, builtin_hand
from handmesh.mano import HandModel
from handmesh.model import HandMeshNet
from handmesh.predict import Predictor


@pytest.fixture(scope="module")
def engine(model_file) -> TorchEngine:
    return TorchEngine(model_file)


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def largest_difference(first: HandOutput, second: HandOutput) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def test_the_engine_answers_as_the_trained_network_does(engine, lively_network):
    """It runs the folded copy; the file holds the unfolded one."""
    images = crops(3)
    with torch.no_grad():
        expected = HandOutput(*(value.numpy() for value in lively_network.eval()(torch.from_numpy(images))))
    answered = engine(images)
    assert all(isinstance(value, np.ndarray) and value.dtype == np.float32 for value in answered)
    assert largest_difference(answered, expected) < 1e-4


def test_a_folded_file_is_the_same_engine(engine, lively_network, tmp_path):
    save_model(tmp_path / "folded.safetensors", lively_network.reparameterize(), training={})
    assert largest_difference(TorchEngine(tmp_path / "folded.safetensors")(crops(2)), engine(crops(2))) < 1e-6


def test_the_engine_says_what_it_is(engine, model_file):
    assert engine.resolution == 64
    assert engine.hand is builtin_hand()
    assert engine.record["training"] == {"steps": 0}
    assert torch.__version__.split("+")[0] in engine.name


def test_a_model_of_mano_answers_with_manos_hand(lively_network, stand_in_mano, tmp_path):
    """From the file to left hands in a photograph: faces, sizes and mirroring are those of the hand in the record."""
    config = lively_network.config.model_copy(update={"hand": "mano"})
    save_model(tmp_path / "mano.safetensors", HandMeshNet(config, HandModel(stand_in_mano)), training={})
    engine = TorchEngine(tmp_path / "mano.safetensors")
    assert engine.hand.sha256 == stand_in_mano.sha256
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    (left,) = Predictor(engine)(photo, handedness="left")
    np.testing.assert_array_equal(left.faces, stand_in_mano.mirrored().faces)


def test_threads_may_share_an_engine(engine):
    images = [crops(1, seed) for seed in range(8)]
    alone = [engine(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine, images))
    assert max(largest_difference(a, b) for a, b in zip(alone, together, strict=True)) < 1e-6


def test_the_engine_leaves_gradients_and_crops_alone(engine):
    images = crops(2)
    before = images.copy()
    engine(images)
    np.testing.assert_array_equal(images, before)
    assert torch.is_grad_enabled()


def test_threads_are_set_only_when_asked_for(model_file):
    before = torch.get_num_threads()
    try:
        open_engine(model_file)
        assert torch.get_num_threads() == before
        open_engine(model_file, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_model_that_is_not_there_is_refused_with_advice(tmp_path):
    with pytest.raises(CheckpointError, match=rf"No model at .*absent.*'{BUNDLED_MODEL}'"):
        open_engine(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="No model at"):
        open_engine(tmp_path)


@pytest.mark.skipif(not bundled_model_path().is_file(), reason="no bundled model: `handmesh train` makes one")
def test_the_bundled_model_opens_by_default_and_by_name():
    default, named = open_engine(), open_engine(BUNDLED_MODEL)
    images = np.full((1, default.resolution, default.resolution, 3), 90, np.uint8)
    assert largest_difference(default(images), named(images)) == 0
