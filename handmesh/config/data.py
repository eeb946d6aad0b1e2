"""Settings of what a run learns from: renders on disk or made while it runs, FreiHAND, photographs of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from handmesh.config.scenes import TrainingScenes
from handmesh.config.settings import Settings
from handmesh.system.cpus import MAX_THREADS

CropName = Literal["frame", "metro", "box"]  # the protocols of handmesh.data.crops.PROTOCOLS
Version = Literal["gs", "hom", "sample", "auto"]


class SyntheticData(Settings):
    """A set of rendered hands, drawn once and then seen many times with new crops, turns, backgrounds and effects."""

    # Rendered here when it is not there yet. Not strict: a path is text in YAML.
    directory: Path = Field(default=Path("data/synthetic"), strict=False)
    count: int = Field(default=60_000, ge=1)  # renders on disk, 0.1 MB each at 160 px
    seed: int = Field(default=0, ge=0)  # of what is drawn
    size: int = Field(default=160, ge=64, le=512)  # pixels; larger than the crop, so that tight crops stay sharp
    workers: int = Field(default=0, ge=0, le=MAX_THREADS)  # rendering processes; 0 = one per available core
    weight: float = Field(default=1.0, gt=0)  # how often it is drawn in comparison with the other sources
    scenes: TrainingScenes = TrainingScenes()  # what is drawn, as in {second_hand: 0, pose: {single_fingers: 0}}


class LiveData(Settings):
    """Synthetic hands that are rendered while training runs: for a GPU that outruns any set on disk."""

    directory: Path = Field(default=Path("data/synthetic"), strict=False)  # of the validation renders
    seed: int = Field(default=0, ge=0)  # of what is drawn
    size: int = Field(default=160, ge=64, le=512)  # pixels; larger than the crop, so that tight crops stay sharp
    # Rendering processes; 0 = one per available core but one, which trains.
    workers: int = Field(default=0, ge=0, le=MAX_THREADS)
    capacity: int = Field(default=100_000, ge=1)  # renders on the training device, 0.1 MB each at 160 px
    start: int = Field(default=4096, ge=1)  # renders that are there before the first step
    # How often a render is seen, on average, at most: beyond that training waits for new ones.
    reuse: float = Field(default=16.0, gt=0)
    backgrounds: int = Field(default=1024, ge=1)  # on the device too, 0.3 MB each at twice 160 px
    scenes: TrainingScenes = TrainingScenes()  # as in `SyntheticData`


class CroppedData(Settings):
    """Photographs, and how they are cropped: by one protocol, or by several in shares."""

    crop: CropName = "box"  # around the hand; the other two are FreiHAND's
    # Several protocols and their shares, in place of `crop`: {metro: 0.5, box: 0.5} trains for a first look at the
    # whole photograph and for a second one around what was found. A sample's crop is drawn each time it is seen.
    crops: dict[CropName, float] = Field(default={})

    @property
    def crop_shares(self) -> dict[CropName, float]:
        """Protocols and their shares, which add up to 1."""
        total = sum(self.crops.values())
        return {name: share / total for name, share in self.crops.items()} if self.crops else {self.crop: 1.0}

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if any(share <= 0 for share in self.crops.values()):
            raise ValueError(f"crops are protocols and their shares, all above 0, found {self.crops}")
        return self


class FreiHandData(CroppedData):
    """FreiHAND's training set, prepared by `handmesh data prepare`."""

    directory: Path = Field(default=Path("FreiHAND"), strict=False)  # the one that `prepare` was given
    weight: float = Field(default=1.0, gt=0)  # as of the other sources
    crop: CropName = "metro"  # METRO's central 180 px, in training and in testing
    # Of the background, by FreiHAND's names.
    versions: tuple[Version, ...] = Field(default=("gs", "hom", "sample", "auto"), min_length=1)
    # Share of the photographs (all their versions) that is kept for watching the run. FreiHAND has no validation set,
    # and its test set is for the end.
    validation: float = Field(default=0.01, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0)  # apart from the run's seed: two runs are watched on the same photographs


class PhotoData(CroppedData):
    """Photographs of your own: a JSONL file (docs/how_to/data.md), its folder, or another of `data.formats.FORMATS`."""

    path: Path = Field(strict=False)  # relative to where training is started
    weight: float = Field(default=1.0, gt=0)  # as of the other sources
    # Share of the photographs, with all their hands, that is kept for watching the run; of a published set, of hands.
    validation: float = Field(default=0.0, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0)  # as of FreiHAND


class DataConfig(Settings):
    """What a run learns from. Several sources are mixed by their weights, each walked in epochs of its own."""

    synthetic: SyntheticData | None = None  # renders on disk
    live: LiveData | None = None  # in place of all the others
    freihand: FreiHandData | None = None  # as `handmesh data prepare` left it
    photos: tuple[PhotoData, ...] = ()  # your own
    # Photographs that cannot be read: end the run, or go on with the next ones and name them at the end.
    skip_bad_images: bool = False

    @model_validator(mode="before")
    @classmethod
    def _synthetic_alone(cls, tree: Any) -> Any:
        """`data: {count: 100}` means `data: {synthetic: {count: 100}}`: so it was when there was one kind of source."""
        if not isinstance(tree, dict) or not (flat := tree.keys() & SyntheticData.model_fields.keys()):
            return tree
        synthetic = {} if tree.get("synthetic") is None else tree["synthetic"]
        if not isinstance(synthetic, dict):
            return tree  # wrong by itself, and refused so
        nested = {**synthetic, **{key: tree[key] for key in flat}}
        return {**{key: value for key, value in tree.items() if key not in flat}, "synthetic": nested}

    @model_validator(mode="after")
    def _something(self) -> DataConfig:
        others = self.synthetic is not None or self.freihand is not None or bool(self.photos)
        if self.live is None and not others:
            raise ValueError("no source of data: wanted at least one of synthetic, live, freihand and photos")
        if self.live is not None and others:
            raise ValueError("live is a source for itself: it cannot be mixed with synthetic, freihand or photos")
        return self
