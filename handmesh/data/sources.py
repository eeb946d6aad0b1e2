"""What a run learns from and is watched on: rendered sets and photographs, opened as its configuration says."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.config.augmentation import Augmentation, PhotoAugmentation
from handmesh.config.data import CroppedData, FreiHandData, PhotoData, SyntheticData
from handmesh.config.scenes import TrainingScenes
from handmesh.config.settings import flat_settings
from handmesh.config.train import TrainConfig
from handmesh.data.augment import (
    CropJitter,
    augment,
    changed_photo,
    downscaled_side,
    enlarged,
    negative_crop,
    on_background,
    with_second_hand,
)
from handmesh.data.crops import PROTOCOLS, CropProtocol, crop_sample
from handmesh.data.cut_outs import CutOut, cut_out
from handmesh.data.formats import open_photos
from handmesh.data.formats.freihand import FreiHand, Split, split_by_annotation
from handmesh.data.formats.records import LabelledPhotos
from handmesh.data.sample import HandLabels, HandSample, RawData, RawSample, without
from handmesh.errors import ConfigError, DataError, ImageError
from handmesh.geometry.crop import CropTransform
from handmesh.hand import HandArrays, builtin_hand, upright_rotation
from handmesh.hand.definitions import joints_from_mano
from handmesh.hand.models import HAND_MODELS, has_mano_joints
from handmesh.synth import Backgrounds, Pack, render_pack
from handmesh.synth.dataset import Progress, same_pack
from handmesh.system.atomic import sha256_of, sha256_of_file
from handmesh.system.cpus import usable_cpus

logger = logging.getLogger(__name__)

VALIDATION_SEED = 1_000_003  # added to a set's seed for the images that training never sees


class Source(Protocol):
    """Samples that are drawn again and again: a `PackSource` or a `PhotoSource`."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def __len__(self) -> int: ...

    def example(self, position: int, rng: np.random.Generator, resolution: int) -> HandSample[NDArray[Any]]: ...

    def files(self) -> Iterable[Path]:
        """Those that say what is in it, see `RawData`."""
        ...

    def take_skipped(self) -> list[str]:
        """Why, of each sample in whose place another was given since the last call."""
        ...


class ValidationSet(Protocol):
    """A set that scores are computed on while training: always the same samples."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def sample(self, position: int, resolution: int) -> HandSample[NDArray[Any]]: ...


class PackSource:
    """Synthetic hands on ever new backgrounds."""

    name = "synthetic"

    def __init__(self, pack: Pack, augmentation: Augmentation, seed: int, weight: float = 1.0) -> None:
        self.pack, self.augmentation, self.seed, self.weight = pack, augmentation, seed, weight

    @cached_property
    def backgrounds(self) -> Backgrounds:
        return Backgrounds(self.seed)

    def __len__(self) -> int:
        return len(self.pack)

    def files(self) -> list[Path]:
        return sorted(self.pack.path.glob("*.npy"))

    def take_skipped(self) -> list[str]:
        return []

    def example(self, position: int, rng: np.random.Generator, resolution: int) -> HandSample[NDArray[Any]]:
        return augment(self.pack[position], rng, self.augmentation, self.backgrounds, resolution)


class ValidationPack:
    """Every render once, with fixed crops: turned anyhow, or the hand roughly upright."""

    def __init__(self, pack: Pack, *, upright: bool) -> None:
        self.pack, self.name = pack, "upright" if upright else "any_rotation"
        self.augmentation = Augmentation(upright_prob=1.0 if upright else 0.0)

    @cached_property
    def backgrounds(self) -> Backgrounds:
        return Backgrounds(VALIDATION_SEED, count=64)

    def __len__(self) -> int:
        return len(self.pack)

    def sample(self, position: int, resolution: int) -> HandSample[NDArray[Any]]:
        rng = np.random.default_rng((VALIDATION_SEED, position))
        return augment(self.pack[position], rng, self.augmentation, self.backgrounds, resolution)


_CHECKED_OF_PUBLISHED = 500  # samples of a published set, before a run
_MAX_SKIPPED = 100  # in a row: then it is not the pictures, but the folder that is gone
_OF_ITS_OWN_HAND = ("vertices", "pose", "betas")  # labels that mean nothing in another hand's model


@dataclass(frozen=True, eq=False)
class PhotoSource:
    """Photographs, how they are cropped, and how often they are drawn in comparison with other sources.

    Data sets open their files at first use, so a source can be sent to worker processes.
    """

    name: str  # in records and messages
    data: RawData
    protocol: CropProtocol  # of what scores are computed on; of training where there are no `crops`
    weight: float = 1.0
    indices: NDArray[np.int64] | None = None  # the samples to use, for example one side of a split; None = all
    augmentation: PhotoAugmentation = field(default_factory=PhotoAugmentation)
    # Whether vertices, pose and betas belong to the hand that is trained. If not they are left out: another hand's
    # vertices are in other places, and its betas mean something else.
    same_hand: bool = True
    mano_joints: bool = False  # joints and keypoints are MANO's, and are brought to our own hand's
    skip_bad_images: bool = False  # take the next one that can be read
    crops: tuple[tuple[CropProtocol, float], ...] = ()  # several protocols to train with, and their shares
    seed: int = 0  # of the backgrounds that hands are put on
    skipped: list[str] = field(default_factory=list, init=False)  # why, of each since `take_skipped`

    def __len__(self) -> int:
        return len(self.data) if self.indices is None else len(self.indices)

    def example(self, position: int, rng: np.random.Generator, resolution: int) -> HandSample[NDArray[Any]]:
        """The photograph at a position of `indices`, seen anew."""
        sample, settings = self._readable(position), self.augmentation
        side = downscaled_side(rng, resolution, settings)
        if sample.labels.hand.present:
            crop = self._protocol(rng).crop(sample)
            upright = self._upright(sample, rng)
            if upright is not None:
                crop = replace(crop, rotation=upright)
            jitter = CropJitter(
                settings.rotation if upright is None else 0.0,
                settings.no_rotation_prob,
                settings.scale,
                settings.shift,
                settings.context_scale_prob,
                settings.context_scale,
            )
            crop = jitter(crop, rng)
            if settings.mirrored and rng.random() < settings.mirrored:
                crop = replace(crop, mirror=not crop.mirror)
        else:
            crop = negative_crop(sample.image.shape, rng, sample.labels.box)
        cropped = crop_sample(self._own_labels(sample), crop, side)
        image = cropped.image
        other_background = settings.background_prob > 0 and rng.random() < settings.background_prob
        second_hand = settings.second_hand > 0 and rng.random() < settings.second_hand
        second_hand = second_hand and bool(sample.labels.hand.keypoints_known.all())
        if sample.alpha is not None and (other_background or second_hand):
            alpha = self._alpha(sample.alpha, crop, image.shape[0])
            if alpha is not None and other_background:
                image = on_background(rng, image, alpha, self.backgrounds.sample(rng, image.shape[0]))
            if alpha is not None and second_hand and (other := self._cut_out(rng)) is not None:
                image = with_second_hand(rng, image, alpha, cropped.labels.keypoints, other)
        return cropped._replace(image=changed_photo(rng, enlarged(rng, image, resolution), settings))

    @cached_property
    def backgrounds(self) -> Backgrounds:
        return Backgrounds(self.seed)

    def _alpha(self, read: Callable[[], NDArray[np.uint8]], crop: CropTransform, side: int) -> NDArray[np.uint8] | None:
        try:
            return crop.warp(read(), side)
        except DataError as error:
            if not self.skip_bad_images:
                raise
            self.skipped.append(str(error))
            return None

    def _cut_out(self, rng: np.random.Generator) -> CutOut | None:
        """Another hand of the source, if the one that is drawn was cut out."""
        try:
            return cut_out(self._readable(int(rng.integers(len(self)))))
        except DataError as error:
            if not self.skip_bad_images:
                raise
            self.skipped.append(str(error))
            return None

    def _upright(self, sample: RawSample, rng: np.random.Generator) -> float | None:
        """For `upright_prob` of the samples whose keypoints are all known: the turn by which the hand points up."""
        settings = self.augmentation
        if not settings.upright_prob or rng.random() >= settings.upright_prob:
            return None
        seen = sample.labels.keypoints_or_projection()
        if seen is None or not seen[1].all():
            return None
        return upright_rotation(seen[0]) + float(rng.normal(0, settings.upright_noise))

    def sample(self, position: int, resolution: int) -> HandSample[NDArray[Any]]:
        """The same as its protocol crops it, unchanged: what scores are computed on."""
        sample = self._readable(position)
        for reason in self.take_skipped():
            logger.warning("skipped in validation: %s", reason)
        return crop_sample(self._own_labels(sample), self.protocol.crop(sample), resolution)

    def _protocol(self, rng: np.random.Generator) -> CropProtocol:
        if not self.crops:
            return self.protocol
        protocols, shares = zip(*self.crops, strict=True)
        return protocols[rng.choice(len(protocols), p=shares)]

    def files(self) -> Iterable[Path]:
        return self.data.files()

    def take_skipped(self) -> list[str]:
        """What was skipped since the last call, and why."""
        found = [*self.skipped]
        self.skipped.clear()
        return found

    def _own_labels(self, sample: RawSample) -> RawSample:
        """With the labels that the trained hand learns from. Crops are made from those that were given."""
        hand = sample.labels.hand
        if not self.same_hand:
            hand = without(hand, *_OF_ITS_OWN_HAND)
        if self.mano_joints:
            hand = _from_mano(hand)
        return replace(sample, labels=replace(sample.labels, hand=hand))

    def _readable(self, position: int) -> RawSample:
        """In place of one that is skipped, the next in order: what is seen depends on nothing but the files."""
        for tried in range(min(len(self), _MAX_SKIPPED)):
            at = (position + tried) % len(self)
            try:
                return self.data[at if self.indices is None else int(self.indices[at])]
            except (DataError, ImageError) as error:
                if not self.skip_bad_images:
                    raise
                self.skipped.append(str(error))
        raise DataError(
            f"{self.name}: of {len(self)} photographs, {min(len(self), _MAX_SKIPPED)} in a row cannot be read. The "
            f"last: {self.skipped[-1]}"
        )


def _from_mano(hand: HandLabels[NDArray[Any]]) -> HandLabels[NDArray[Any]]:
    """Joints and keypoints where our own hand has them; a keypoint that needs one that is not known is not known."""
    keypoints = joints_from_mano(np.where(hand.keypoints_known[:, None], hand.keypoints, np.nan))
    known = np.asarray(np.isfinite(keypoints).all(axis=-1), bool)
    keypoints[~known] = 0
    return hand._replace(joints=joints_from_mano(hand.joints), keypoints=keypoints, keypoints_known=known)


def files_sha256(files: Iterable[Path]) -> str:
    """Identity of what a source reads. A picture that is not there, and is perhaps to be skipped, is part of that."""
    return sha256_of("".join(sha256_of_file(file) if file.is_file() else "-" for file in files).encode())


class RunData(NamedTuple):
    """What a run learns from, and what it is watched on."""

    sources: list[Source]  # none where renders are made while training runs, see `data.live`
    validation: list[ValidationSet]


def open_data(config: TrainConfig, hand: HandArrays, progress: Progress | None = None) -> RunData:
    """All sources of a run, rendered now where they are synthetic and not there yet.

    Raises DataError for what is missing or does not belong to `hand`, ConfigError for a choice that cannot be made.
    """
    sources: list[Source] = []
    validation: list[ValidationSet] = []
    data, count = config.data, config.evaluation_count
    test_set: PhotoSource | None = None
    # Photographs first: what is wrong with them is known in seconds, while rendering may take hours.
    photos = [] if data.freihand is None else [freihand_source(data.freihand, config, hand)]
    photos += [photo_source(settings, number, config, hand) for number, settings in enumerate(data.photos)]
    if config.select == "test_set" and data.freihand is not None:
        test_set = freihand_test_set(data.freihand, config, hand)
    if data.synthetic is not None:
        pack = training_pack(data.synthetic, progress, hand)
        sources.append(PackSource(pack, config.augmentation, config.seed, data.synthetic.weight))
        unseen = validation_pack(data.synthetic, count, progress, hand)
        validation += [ValidationPack(unseen, upright=False), ValidationPack(unseen, upright=True)]
    if data.live is not None:
        shared = ("directory", "seed", "size", "workers", "scenes")
        live = SyntheticData(**{name: getattr(data.live, name) for name in shared})
        unseen = validation_pack(live, count, progress, hand)
        validation += [ValidationPack(unseen, upright=False), ValidationPack(unseen, upright=True)]
    for training, watched in photos:
        sources.append(training)
        validation += watched
    if test_set is not None:
        validation.append(test_set)
    if config.select == "validation" and not validation:
        raise ConfigError(
            "select: validation needs samples that are held out: set the validation of data.freihand or of a file "
            "in data.photos above 0, or select: last."
        )
    for source in sources:
        logger.info("%s: %d samples, weight %g", source.name, len(source), source.weight)
    return RunData(sources, validation)


def training_pack(settings: SyntheticData, progress: Progress | None = None, hand: HandArrays | None = None) -> Pack:
    """The run's rendered set; rendered now if it is not there yet. DataError if another is in its place."""
    return _pack("train", settings, settings.count, settings.seed, progress, hand)


def validation_pack(
    settings: SyntheticData, count: int, progress: Progress | None = None, hand: HandArrays | None = None
) -> Pack:
    """Scenes that training never sees."""
    return _pack("heldout", settings, count, settings.seed + VALIDATION_SEED, progress, hand)


def _pack(
    kind: str,
    settings: SyntheticData,
    count: int,
    seed: int,
    progress: Progress | None,
    hand: HandArrays | None,
) -> Pack:
    other = "" if hand is None or hand.sha256 == builtin_hand().sha256 else f"-hand{hand.sha256[:8]}"
    name = f"{kind}-{count}-{settings.size}px-seed{settings.seed}{other}"
    scenes, usual = (flat_settings(scenes.model_dump(mode="json")) for scenes in (settings.scenes, TrainingScenes()))
    path = settings.directory / name
    if changed := {key: value for key, value in scenes.items() if value != usual[key]}:
        path = path.with_name(f"{name}-scenes{sha256_of(json.dumps(changed, sort_keys=True).encode())[:8]}")
    # Former versions named the same pack after the text that was written in the configuration.
    candidates = [path, *sorted(settings.directory.glob(f"{name}-scenes*"))]
    path = same_pack(candidates, count, seed, settings.size, settings.scenes, hand=hand) or path
    cores = settings.workers or usable_cpus()
    return render_pack(path, count, seed, settings.size, settings.scenes, cores, progress, hand=hand)


def freihand_source(
    settings: FreiHandData, config: TrainConfig, hand: HandArrays
) -> tuple[PhotoSource, list[PhotoSource]]:
    """FreiHAND's training set, and what of it is held out, once for each crop protocol: no photograph of one is in the
    other, in any version.
    """
    data, same_hand, mano_joints = _freihand(settings, "training", hand)
    training, validation = split_by_annotation(data, settings.validation, settings.split_seed, settings.versions)
    protocols = _protocols(settings)
    source = PhotoSource(
        "freihand",
        data,
        protocols[0][0],
        settings.weight,
        training,
        config.photo_augmentation,
        same_hand=same_hand,
        mano_joints=mano_joints,
        skip_bad_images=config.data.skip_bad_images,
        crops=protocols if len(protocols) > 1 else (),
    )
    held_out = replace(source, indices=_spread(validation, config.evaluation_count))
    return source, _watched(held_out, protocols) if len(validation) else []


def _protocols(settings: CroppedData) -> tuple[tuple[CropProtocol, float], ...]:
    """The protocols of a source and their shares, as its settings list them."""
    return tuple((PROTOCOLS[name], share) for name, share in settings.crop_shares.items())


def _watched(held_out: PhotoSource, protocols: tuple[tuple[CropProtocol, float], ...]) -> list[PhotoSource]:
    """A validation set for each protocol; the first has the source's own name."""
    return [
        replace(held_out, name=f"{held_out.name}_{protocol.name}" if place else held_out.name, protocol=protocol)
        for place, (protocol, _) in enumerate(protocols)
    ]


def freihand_test_set(settings: FreiHandData, config: TrainConfig, hand: HandArrays) -> PhotoSource:
    """The evaluation set. Only for runs that ask for it by name; crops never come from its labels."""
    data, same_hand, mano_joints = _freihand(settings, "evaluation", hand)
    chosen = _spread(np.arange(len(data)), config.evaluation_count)
    return PhotoSource(
        "test_set",
        data,
        next(PROTOCOLS[name] for name in settings.crop_shares if name != "box"),
        indices=chosen,
        same_hand=same_hand,
        mano_joints=mano_joints,
        skip_bad_images=config.data.skip_bad_images,
    )


def _freihand(settings: FreiHandData, split: Split, hand: HandArrays) -> tuple[FreiHand, bool, bool]:
    data = FreiHand(settings.directory, split)
    same_hand, mano_joints = _compare_hands(data, hand)
    return FreiHand(settings.directory, split, hand) if same_hand else data, same_hand, mano_joints


def _compare_hands(data: FreiHand | LabelledPhotos, hand: HandArrays) -> tuple[bool, bool]:
    """`same_hand` and `mano_joints` of a `PhotoSource`; what they leave out or move is said."""
    labelled = data.labelled_hand
    if labelled is None or labelled.matches(hand):
        return True, False
    mano_joints = data.mano_joints and not has_mano_joints(hand.sha256)
    logger.warning(
        "The meshes of %s are those of the hand %s, and this run trains another: its joints and keypoints are used%s, "
        "its vertices, poses and shapes are not%s.",
        data.path,
        labelled,
        ", moved from where MANO has them to where this hand does" if mano_joints else "",
        f" (for them: --hand-model {labelled.name})" if labelled.name in HAND_MODELS else "",
    )
    return False, mano_joints


def photo_source(
    settings: PhotoData, number: int, config: TrainConfig, hand: HandArrays
) -> tuple[PhotoSource, list[PhotoSource]]:
    """Photographs in one of `FORMATS`, and what of them is held out, once for each crop protocol."""
    data = open_photos(settings.path)
    same_hand, mano_joints = _compare_hands(data, hand)
    training, validation = _split_by_photograph(data, settings.validation, settings.split_seed)
    protocols = _protocols(settings)
    _check_lines(data, [protocol for protocol, _ in protocols], images=not config.data.skip_bad_images)
    source = PhotoSource(
        f"photos{number}",
        data,
        protocols[0][0],
        settings.weight,
        training,
        config.photo_augmentation,
        same_hand=same_hand,
        mano_joints=mano_joints,
        skip_bad_images=config.data.skip_bad_images,
        crops=protocols if len(protocols) > 1 else (),
        seed=config.seed,
    )
    held_out = replace(source, indices=_spread(validation, config.evaluation_count))
    return source, _watched(held_out, protocols) if len(validation) else []


def _split_by_photograph(
    data: LabelledPhotos, validation: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples to train on and those held out, sorted: all hands of a photograph on the same side.

    Of a published set, whose millions of records would have to be read for that and which has splits of its own, each
    sample by itself.
    """
    photographs = np.arange(len(data))
    if validation > 0 and not data.published:
        numbers: dict[Path, int] = {}
        images = (data.image_path(index) for index in range(len(data)))
        photographs = np.array([numbers.setdefault(image, len(numbers)) for image in images])
    count = int(photographs.max()) + 1
    order = np.random.default_rng((seed, 0x50484F54)).permutation(count)
    held_out = np.isin(photographs, order[: round(validation * count)])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check_lines(data: LabelledPhotos, protocols: list[CropProtocol], *, images: bool) -> None:
    """Rather now than after hours: is every label sound, every image there, and a crop to be had of it?

    Of a published set, some of its samples: `handmesh data check` looks at all.
    """
    numbers = _spread(np.arange(len(data)), _CHECKED_OF_PUBLISHED if data.published else len(data))
    for index in map(int, numbers):
        labels = data.labels(index)
        if any(one.share is None for one in protocols) and labels.hand.present and labels.hand_box() is None:
            raise DataError(
                f"{data.where(index)} has no box, and no keypoints to make one from: give one of them, or set this "
                "source's crop to frame."
            )
        for image in data.picture_paths(index) if images else ():
            if not image.is_file():
                raise DataError(f"{data.where(index)}: there is no image {image}.")


def _spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of them, evenly spread: of FreiHAND, photographs from all its sessions in all versions."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
