"""The ImageNet check counts right answers, over images prepared as they were for the published numbers."""

import numpy as np
import pytest
import torch
from imagenet import CENTRAL_SHARE, RELEASED_TOP1, labelled_images, load_classifier, main, preprocess, top1
from PIL import Image

from handmesh.errors import CheckpointError, DataError, ImageError
from handmesh.model.backbone import IMAGE_MEAN, IMAGE_STD
from handmesh.model.fastvit import VARIANTS, build_backbone
from handmesh.model.pretrained import add_backbone_weights


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 640), (256, 256), (120, 90)])
@pytest.mark.parametrize("share", [0.9, 0.95])
def test_the_square_is_the_published_share_of_the_images_middle(width, height, share, tmp_path):
    """A ramp, which bicubic filtering keeps, tells where each pixel of the square was in the image."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ramp = np.stack([200 * x / width, 200 * y / height, np.full_like(x, 77)], axis=-1)
    Image.fromarray(ramp.round().astype(np.uint8)).save(tmp_path / "ramp.png")
    pixels = preprocess(tmp_path / "ramp.png", share) * torch.tensor(IMAGE_STD)[:, None, None]
    pixels = 255 * (pixels + torch.tensor(IMAGE_MEAN)[:, None, None])
    assert pixels.shape == (3, 256, 256)
    # The square's side covers this share of the shorter side, and its middle is the image's.
    side = share * min(width, height)
    along = (np.arange(256) + 0.5) / 256 - 0.5
    for channel, length in enumerate((width, height)):
        expected = torch.as_tensor(200 * (length / 2 + side * along - 0.5) / length)
        profile = pixels[channel].mean(dim=0 if channel == 0 else 1)
        # Rounding the scaled side and corner to whole pixels moves things by a pixel, 200 / 256 grey levels, or less.
        torch.testing.assert_close(profile[3:-3].double(), expected[3:-3], rtol=0.0, atol=1.5)
    torch.testing.assert_close(pixels[2], torch.full((256, 256), 77.0))


def test_every_variant_has_its_share_and_its_published_accuracy():
    assert set(CENTRAL_SHARE) == set(RELEASED_TOP1) == set(VARIANTS)
    assert all(plain < distilled for plain, distilled in RELEASED_TOP1.values())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    backbone = build_backbone("fastvit_t8", num_classes=4)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        backbone.train()(torch.randn(4, 3, 64, 64))
        backbone.head.weight.normal_()
    folder = tmp_path_factory.mktemp("weights")
    torch.save(backbone.state_dict(), folder / "download.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDMESH_WEIGHTS_DIR", str(folder))
        add_backbone_weights(folder / "download.pth", "tiny")
        yield load_classifier("tiny")


@pytest.fixture
def sorted_images(classifier, tmp_path):
    """Seven pictures in class folders; five lie where the network would put them, and two do not."""
    generator = np.random.default_rng(0)
    for index in range(7):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = tmp_path / "picture.png"
        Image.fromarray(coarse).resize((200 + 10 * index, 180)).save(path)
        with torch.no_grad():
            answer = classifier.classify(preprocess(path, 0.9)[None]).argmax().item()
        label = (answer + 1) % 4 if index in (2, 5) else answer
        (tmp_path / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "images" / str(label) / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("batch_size", [3, 100])
def test_right_answers_are_counted(batch_size, classifier, sorted_images):
    told = []
    score = top1(classifier, sorted_images, batch_size=batch_size, on_progress=lambda *numbers: told.append(numbers))
    assert (score.correct, score.total) == (5, 7)
    assert score.percent == pytest.approx(500 / 7)
    assert told[-1] == (5, 7, 7)


def test_the_script_prints_it_beside_the_released_figure(classifier, sorted_images, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["imagenet.py", "tiny", str(sorted_images), "--batch", "4"])
    main()
    printed = capsys.readouterr().out
    assert "tiny: top-1 71.43 % of 7 images" in printed
    assert "released for fastvit_t8 on ImageNet's 50000 images: 76.2 %, distilled 77.2 %" in printed


def test_class_folders_are_numbered_by_the_order_of_their_names(tmp_path):
    for name in ("n03", "n01", "n02"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.JPEG").touch()
        (tmp_path / name / "notes.txt").touch()
    labels = [(path.parent.name, label) for path, label in labelled_images(tmp_path, 3)]
    assert labels == [("n01", 0), ("n02", 1), ("n03", 2)]


def test_layouts_without_known_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        labelled_images(tmp_path / "nowhere", 1000)
    with pytest.raises(DataError, match="one flat folder"):
        labelled_images(tmp_path, 1000)
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(DataError, match=r"1 sub-folders \(n01440764\).*1000 classes.*0 to 999"):
        labelled_images(tmp_path, 1000)


def test_a_file_that_is_no_image_ends_the_check(classifier, sorted_images):
    (sorted_images / "0").mkdir(exist_ok=True)
    (sorted_images / "0" / "broken.jpg").write_bytes(b"<!doctype html>")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        top1(classifier, sorted_images)


def test_weights_without_a_classifier_have_no_accuracy(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDMESH_WEIGHTS_DIR", str(tmp_path))
    torch.save(build_backbone("fastvit_t8").state_dict(), tmp_path / "download.pth")
    add_backbone_weights(tmp_path / "download.pth", "headless")
    with pytest.raises(CheckpointError, match="no classifier"):
        load_classifier("headless")
