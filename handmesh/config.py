"""Every setting of a run as a typed, frozen model, filled from one YAML file and `key.path=value` overrides.

Defaults live here with their reasons; a YAML file holds only what differs. A key that does not exist, or a value of
the wrong type, is a ConfigError that names it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from handmesh.errors import ConfigError
from handmesh.hand.models import HAND_MODELS
from handmesh.system.cpus import MAX_THREADS

logger = logging.getLogger(__name__)

# Dotted names of settings in former versions, and what they are called now, in the same section: files and states of
# those versions load, and say so.
RENAMED_KEYS = {
    "loss.right": "loss.handedness",
    "augmentation.upright": "augmentation.upright_prob",
    "augmentation.wide": "augmentation.context_scale_prob",
    "augmentation.wide_margin": "augmentation.context_scale",
    "augmentation.absent": "augmentation.negative_ratio",
    "augmentation.amplitude_mix": "augmentation.fda_prob",
    "augmentation.photo_edge": "augmentation.border_prob",
    "photo_augmentation.unrotated": "photo_augmentation.no_rotation_prob",
    "folded": "reparameterized",
}
# Those of scenes, which packs on disk record too.
RENAMED_SCENE_KEYS = {"amplitude_mix": "fda_prob", "least_clear": "min_unoccluded", "least_visible": "min_visible"}
RENAMED_KEYS |= {
    f"data.{section}{old}": f"data.{section}{new}"
    for section in ("synthetic.scenes.", "live.scenes.", "scenes.")
    for old, new in RENAMED_SCENE_KEYS.items()
}

# Backbones by name, and the module that builds each. A further one is a line here and a module of its own, and nothing
# else: handmesh.model.backbone says what it offers.
BACKBONES = {
    "fastvit_t8": "handmesh.model.fastvit",
    "fastvit_t12": "handmesh.model.fastvit",
    "fastvit_s12": "handmesh.model.fastvit",
    "fastvit_sa12": "handmesh.model.fastvit",
    "fastvit_sa24": "handmesh.model.fastvit",
    "fastvit_sa36": "handmesh.model.fastvit",
    "fastvit_ma36": "handmesh.model.fastvit",
}


# Mean and standard deviation of ImageNet's RGB values (0 to 1): the published backbones were trained with these.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

ATTENTION_HEAD_CHANNELS = 32  # of every FastViT with attention


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Settings)


def _known_hand(name: str) -> str:
    if name not in HAND_MODELS:
        raise ValueError(f"there is no hand model {name!r}, only {' and '.join(HAND_MODELS)}")
    return name


def _known_backbone(name: str) -> str:
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}, only {', '.join(BACKBONES)}")
    return name


class ModelConfig(Settings):
    """What a checkpoint needs to rebuild its own network."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] = "fastvit_ma36"  # one of `BACKBONES`; the paper: MA36
    resolution: int = Field(default=224, ge=64, le=1024, multiple_of=32)  # px, the crop; the paper: 224
    # Share of residual branches left out in training, growing with depth to this.
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    # Whose hand it answers with: ours, or the MANO files that `handmesh mano add` brought. Part of the network.
    hand: Annotated[str, AfterValidator(_known_hand)] = "builtin"
    # Two more single layers on the pooled features; the paper has neither.
    confidence_head: bool = False  # a hand, and well found?
    handedness_head: bool = False  # does the crop show a right hand, or (unmirrored) a left one?
    joint_confidence_head: bool = False  # which of the joints are well found?
    # A second head, on features at the joints that the first draws (`handmesh.model.token_head`). The paper has none.
    token_head: bool = False
    # Where each joint is seen, from heatmaps at stride 8: what an answer can be fitted to (`handmesh.predict.refine`).
    keypoint_head: bool = False
    # The camera's first guess: 2 f / (r z) for a median FreiHAND frame, f = 730 px-metres per metre, r = 224 px.
    initial_scale: float = Field(default=6.5, gt=0)


CropName = Literal["frame", "metro", "box"]  # the protocols of handmesh.data.crops.PROTOCOLS
Version = Literal["gs", "hom", "sample", "auto"]


class SceneGroup(Settings):
    """Shares, spreads and sizes of synthetic scenes, all of them 0 or more; pairs are the ends of ranges."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name, value in self:
            ends = value if isinstance(value, tuple) else (value,) if isinstance(value, int | float) else (0,)
            if min(ends) < 0 or list(ends) != sorted(ends):
                wanted = "two numbers from 0 on, the smaller one first" if len(ends) > 1 else "a number from 0 on"
                raise ValueError(f"{name} is {value!r}, wanted {wanted}")
        return self


class PoseSettings(SceneGroup):
    """How far poses stray from the library. Angles in radians."""

    grasps: float = 2.0  # weight of base poses that hold something, relative to the others: half of all base poses
    blend: float = 0.45  # probability that a pose lies between two base poses
    swap_fingers: float = 0.20  # probability that some fingers come from another base pose
    free: float = 0.12  # probability of independent random curls: what the library forgot
    single_fingers: float = 0.30  # probability that one to three fingers curl or stretch on their own, see `_detach`
    joint_noise: float = 0.10  # standard deviation of each flexion: people differ by 5 to 8 degrees in the same grasp
    spread_noise: float = 0.06  # standard deviation of each abduction
    fan_noise: float = 0.07  # standard deviation of the index finger's share in spreading all fingers or closing them
    touch: float = 0.0  # probability that the thumb truly touches a finger: OK signs, pinches, keys
    penetration: float = 0.005  # metres: deeper is redone; soft fingertips give 3 to 4 mm, capsules err by 1 to 2


class LightSettings(SceneGroup):
    """Shares of light that is unlike an evenly lit room, out of all scenes."""

    back: float = 0.10  # the key light behind the hand: a bright rim, the side we see in shade
    flash: float = 0.08  # a hard light at the camera
    overcast: float = 0.15  # no key light at all
    colored: float = 0.06  # neon, sunset, stage: key light or surroundings of a strong colour
    spots: tuple[int, int] = (0, 4)  # soft lamps and windows: at least, less than


class SkinSettings(SceneGroup):
    """How strong the skin's detail is; ranges are of uniform draws."""

    relief: tuple[float, float] = (0.05, 0.30)  # fine bumps
    mottle: tuple[float, float] = (0.05, 0.24)  # blotches of blood and pigment
    roughness: tuple[float, float] = (0.42, 0.66)  # of the microfacets: lower is shinier
    specular: tuple[float, float] = (0.020, 0.040)  # reflectance at normal incidence; skin's is 0.028
    scatter: tuple[float, float] = (0.6, 1.3)  # how far light wraps around
    palm_lines: tuple[float, float] = (0.3, 1.3)  # depth of the creases


class CameraEffects(SceneGroup):
    """Strengths and probabilities; the defaults suit images of 100 to 300 px. All zero: the image is returned as is.

    Colour is mostly changed gently: strong colour changes cost accuracy on real photographs, because colour tells the
    palm from the back of the hand. The rare strong ones stand for lamps and cameras that do it.
    """

    white_balance: float = 0.06  # standard deviation of each channel's gain
    contrast: float = 0.10  # standard deviation of the factor
    brightness: float = 0.035  # standard deviation of the offset, of full scale
    gamma: float = 0.12  # standard deviation of its logarithm
    saturation: float = 0.15  # standard deviation of the factor
    defocus: float = 0.38  # probability; how much: `DEFOCUS_SIGMA`
    motion: float = 0.16  # probability; how much: `MOTION_LENGTH`
    low_resolution: float = 0.22  # probability: small hands in large photos are enlarged, `SMALLER` times
    sharpen: float = 0.12  # probability: phones do
    noise: float = 0.7  # probability
    vignette: float = 0.15  # probability
    jpeg: float = 0.6  # probability
    second_jpeg: float = 0.3  # probability, given one: saved, edited and saved again, its blocks shifted by a crop
    uneven_light: float = 0.25  # probability: how much: `UNEVEN_LIGHT`
    color_cast: float = 0.08  # probability of strong gains: stage light, a wrong white balance
    exposure: float = 0.16  # probability of an exposure wrong by up to 1.3 stops, clipped where it is too bright
    low_light: float = 0.05  # probability: dark, coarse noise, raised again
    grayscale: float = 0.02  # probability; rare, because grey images cost accuracy on colour ones
    flicker: float = 0.03  # probability of bands across the rows: lamps' mains flicker under a rolling shutter
    spectrum: float = 0.15  # probability of `jitter_spectrum`

    @classmethod
    def none(cls) -> CameraEffects:
        return cls(**dict.fromkeys(cls.model_fields, 0.0))


class SceneSettings(SceneGroup):
    """What is worth changing about scenes. Probabilities unless said otherwise."""

    pose: PoseSettings = PoseSettings()
    # Views: shares of the mix. Uniform covers every orientation, the others are where cameras are.
    uniform_views: float = 0.30  # 0.25 to 1.5 m
    tripod_views: float = 0.20  # cameras around a person, as FreiHAND's: any side, 0.4 to 1 m, the arm near horizontal
    selfie_views: float = 0.14  # palm or back to the camera, fingers up, 0.3 to 0.7 m
    egocentric_views: float = 0.12  # own hand seen from the head: from the wrist side, back up
    table_views: float = 0.16  # from above, any direction in the image plane
    room_views: float = 0.10  # across a room, 0.8 to 3 m
    # Share of scenes whose pose and view a real hand took (`handmesh.synth.real_poses`), in place of all the above.
    real_poses: float = 0.0
    # The longer side of the hand's box as a share of the image; below 0.45 crops waste pixels, above 0.95 they cut.
    crop_share: tuple[float, float] = (0.45, 0.95)
    off_center: float = 0.06  # standard deviation of the box centre, share of the image
    off_axis: float = 0.14  # radians, standard deviation of the hand's direction from the optical axis, per axis
    sleeve: float = 0.40  # over the forearm
    bracelet: float = 0.25  # or a watch, where there is no sleeve
    object: float = 0.85  # for poses that hold something (a third of all): real hand photos are often of hands in use
    stray_object: float = 0.08  # near the hand, whatever the pose
    occluder: float = 0.16  # something flat in front of the camera's view of the hand
    second_hand: float = 0.16  # another hand, most often the person's left one: holding, crossing or beside
    nail_polish: float = 0.12  # on the nails
    ring: float = 0.14  # on a finger
    hair: float = 0.30  # on the back of hand and forearm
    tattoo: float = 0.04  # drawn on the skin
    glove: float = 0.05  # worn, in place of bare skin
    lights: LightSettings = LightSettings()
    skin: SkinSettings = SkinSettings()
    white_balance: float = 0.6  # share of the light's colour that the camera removes; 1 all, 0 none (not a probability)
    shadow: float = 0.5  # drop shadow on the background
    fda_prob: float = (
        0.10  # Fourier amplitude mix: finished photographs that take on another background's coarse colours
    )
    # Fewer joints than this share inside the image and clear of other things (forearm, object, sleeve), and the scene
    # is drawn again: what cannot be seen teaches nothing. Fingers behind fingers do not count, or fists would be rare;
    # the second number bounds them, too.
    min_unoccluded: float = 0.65
    min_visible: float = 0.3  # of joints that nothing at all hides
    beta_scale: float = 1.2  # standard deviation of the shape coefficients, cut at 3: children to large adults
    effects: CameraEffects = CameraEffects()

    @classmethod
    def held_out_appearance(cls) -> SceneSettings:
        """The same hands, poses and views of an appearance that training never sees; with `Backgrounds(held_out=True)`.

        Hard light of one strong lamp and little else, shinier and smoother or much rougher skin without scattering, a
        camera that keeps the light's colour and is noisier: what a network learnt of our renderer alone fails here.
        """
        return cls(
            lights=LightSettings(back=0.2, flash=0.25, overcast=0, colored=0.25, spots=(0, 1)),
            skin=SkinSettings(
                relief=(0.35, 0.7),
                mottle=(0.28, 0.5),
                roughness=(0.25, 0.40),
                specular=(0.05, 0.08),
                scatter=(0.0, 0.3),
                palm_lines=(0.1, 0.6),
            ),
            white_balance=0.2,
            shadow=0.2,
            effects=CameraEffects(
                contrast=0.2, gamma=0.25, saturation=0.3, defocus=0.45, noise=0.9, jpeg=0.9, color_cast=0.25
            ),
        )


class TrainingPoses(PoseSettings):
    """More fingers move on their own."""

    free: float = 0.18
    swap_fingers: float = 0.25
    single_fingers: float = 0.35


class TrainingScenes(SceneSettings):
    """Renders that leave room around the hand, so that training can crop tightly or widely and turn without leaving
    the picture. Half of the views are from anywhere, for real photographs have many that the default mix hardly draws
    (measured: docs/explain/bundled_model.md).
    """

    pose: TrainingPoses = TrainingPoses()
    crop_share: tuple[float, float] = (0.38, 0.72)
    off_center: float = 0.04
    uniform_views: float = 0.50
    tripod_views: float = 0.22
    selfie_views: float = 0.08
    egocentric_views: float = 0.06
    table_views: float = 0.09
    room_views: float = 0.05


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
    workers: int = Field(
        default=0, ge=0, le=MAX_THREADS
    )  # rendering processes; 0 = one per available core but one, which trains
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
    crops: dict[CropName, float] = {}

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
    validation: float = Field(default=0.0, ge=0, lt=1)  # share of the lines that is kept for watching the run
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
        nested = {**(tree.get("synthetic") or {}), **{key: tree[key] for key in flat}}
        return {**{key: value for key, value in tree.items() if key not in flat}, "synthetic": nested}

    @model_validator(mode="after")
    def _something(self) -> DataConfig:
        others = self.synthetic is not None or self.freihand is not None or bool(self.photos)
        if self.live is None and not others:
            raise ValueError("no source of data: wanted at least one of synthetic, live, freihand and photos")
        if self.live is not None and others:
            raise ValueError("live is a source for itself: it cannot be mixed with synthetic, freihand or photos")
        return self


class Augmentation(Settings):
    """How a synthetic hand is seen anew."""

    upright_prob: float = Field(default=0.6, ge=0, le=1)  # share of samples turned so that the hand points up ...
    upright_noise: float = Field(default=math.radians(25), ge=0)  # ... give or take; the rest get any turn
    margin: tuple[float, float] = (1.15, 2.2)  # crop side over the keypoints' box
    center_jitter: float = Field(default=0.12, ge=0)  # of the crop's side, standard deviation 0.5 of this
    # Whole photos show small hands: this share of samples draws its margin from context_scale instead.
    context_scale_prob: float = Field(default=0.0, ge=0, le=1)
    context_scale: tuple[float, float] = (2.0, 4.0)  # times the keypoints' box
    # For the two optional heads: shares of samples seen in a mirror, as left hands are, and without a hand.
    mirrored: float = Field(default=0.0, ge=0, le=1)
    negative_ratio: float = Field(default=0.0, ge=0, le=1)  # a background alone: what confidence learns from
    effects: float = Field(default=1.0, ge=0)  # strength of blur, noise, JPEG and colour changes
    # Fourier amplitude mix (FDA): share of samples that take on coarse colours of another background.
    fda_prob: float = Field(default=0.15, ge=0, le=1)
    border_prob: float = Field(default=0.2, ge=0, le=1)  # share of samples that are black beyond the render's frame


class PhotoAugmentation(Settings):
    """How a photograph is seen anew. The defaults are METRO's (`augm_params` in its data code): no flip, no shift."""

    rotation: float = Field(default=math.pi / 2, ge=0)  # radians, standard deviation; cut at half a turn
    no_rotation_prob: float = Field(default=0.6, ge=0, le=1)  # share of samples that are not turned
    # Before all that: this share of samples is turned so that the hand points up, give or take.
    upright_prob: float = Field(default=0.0, ge=0, le=1)
    upright_noise: float = Field(default=math.radians(25), ge=0)  # radians
    scale: float = Field(default=0.25, ge=0, lt=1)  # of the side's factor: standard deviation, and where it is cut
    shift: float = Field(default=0.0, ge=0)  # of the crop's side: cut, standard deviation half of it
    # The first crop of a whole photo shows a small hand: this share of samples has a crop larger by a factor from here.
    context_scale_prob: float = Field(default=0.0, ge=0, le=1)
    context_scale: tuple[float, float] = (1.35, 2.7)  # times the crop
    # Share of samples that are mirrored so that the hand's side is taken for the other: what `handedness_head` learns.
    mirrored: float = Field(default=0.0, ge=0, le=1)
    # Share of samples reduced to a crop of so many pixels, and enlarged again: hands far away are small and soft.
    downscale_prob: float = Field(default=0.0, ge=0, le=1)
    downscale_px: tuple[float, float] = (32.0, 110.0)  # the crop's side, the smallest and the largest
    # Share of the samples with an `alpha` whose hand is put on another background.
    background_prob: float = Field(default=0.0, ge=0, le=1)
    channel_gain: float = Field(default=0.4, ge=0, lt=1)  # each colour times 1 - this to 1 + this
    effects: float = Field(default=0.0, ge=0)  # strength of blur, noise, JPEG, colour changes: as synthetic hands'
    occlusion: float = Field(default=0.0, ge=0, le=1)  # share of samples with something in front


class LossWeights(Settings):
    """Weights of the parts of `losses.hand_loss`; lengths in metres, 2D in NDC, rotations as matrices.

    The balance is measured: an L1 on posed vertices alone averages over the unknown orientation and collapses, so the
    hand's own (de-rotated) frame and the rotations carry the gradient and the posed frame is a small share.
    """

    vertices: float = 2.0  # L1, relative to the wrist
    joints: float = 2.0  # as vertices
    root_vertices: float = 10.0  # the same in the hand's own frame, orientation taken out
    root_joints: float = 10.0  # as root_vertices
    keypoints: float = 1.0  # L1 of the projected joints, NDC of the crop
    orientation: float = 1.0  # L1 of the matrix of the whole hand
    pose: float = 2.0  # L1 of the 15 matrices of the fingers
    betas: float = 0.02  # L1; small, for a photograph says little about them
    heatmaps: float = 0.25  # dense supervision, in training only
    heatmap_keypoints: float = 1.0  # L1 of the heatmaps' centres, NDC
    heatmap_depths: float = 0.3  # decimetres, relative to the wrist
    # Of the mesh's triangles: how far edges are from lying in the true triangle's plane (cosine with its normal), and
    # how much longer or shorter than the true ones they are, metres. Meshes whose vertices are predicted one by one
    # need them to be smooth (I2L-MeshNet; MobRecon: 0.1 and 1). One that a hand model poses is smooth without, so they
    # are off: to be tried where fingers come out too thick, or turned about their own axes.
    normals: float = 0.0
    edges: float = 0.0  # as normals
    confidence: float = 0.1  # cross-entropies of the optional heads
    handedness: float = 0.2  # cross-entropy, as confidence
    joint_confidence: float = 0.1  # cross-entropy, as confidence


class LossNorms(Settings):
    """How the three kinds of positions are compared. METRO: vertices by L1, joints and keypoints by squares.

    Squares of metres are small: so joints carry 1 to 2 % of the gradient on the pose (benchmarks/gradients.py).
    """

    vertices: Literal["l1", "mse"] = "l1"  # posed and root-relative ones
    joints: Literal["l1", "mse"] = "l1"  # as vertices
    keypoints: Literal["l1", "mse"] = "l1"  # drawn ones


class OptimizerConfig(Settings):
    name: Literal["adamw", "adam"] = "adamw"  # the paper of the backbone: AdamW; METRO: Adam
    learning_rate: float = Field(default=1e-3, gt=0)  # at its highest, after the warm-up
    # cosine: half a cosine from learning_rate to final_learning_rate. step: times decay_factor at each of decay_at.
    schedule: Literal["cosine", "step"] = "cosine"
    final_learning_rate: float = Field(default=1e-5, ge=0)  # of a cosine, at the last step
    decay_at: tuple[float, ...] = (0.5,)  # shares of the run, in increasing order
    decay_factor: float = Field(default=0.1, gt=0, le=1)  # of a step schedule
    weight_decay: float = Field(default=0.02, ge=0)  # on kernels and matrices only
    warmup_steps: int = Field(default=500, ge=0)  # linear, from zero: batch norm and Adam need some
    clip_norm: float | None = Field(default=5.0, gt=0)  # of all gradients together; None: no limit
    ema_decay: float = Field(default=0.998, ge=0, lt=1)  # of the averaged weights, which are the result; 0: no average


class DetectorModel(Settings):
    """What a detector's file needs to rebuild its network (`handmesh.model.detector`)."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] = "fastvit_t8"
    stages: int = Field(default=3, ge=2, le=4)  # of the backbone, from the first
    mlp_ratio: int = Field(default=1, ge=1, le=4)  # hidden channels of its perceptrons over their outer ones
    width: int = Field(default=48, ge=8, le=256)  # channels of the pyramid


class SceneSource(Settings):
    """Photographs with their hands: a JSONL file (docs/how_to/data.md)."""

    path: Path = Field(strict=False)
    weight: float = Field(default=1.0, gt=0)


class DetectorData(Settings):
    """What a detector learns from; the first three are shares of the pictures."""

    crowds: float = Field(default=0.4, ge=0)  # several renders on one background
    photographs: float = Field(default=0.35, ge=0)
    mosaics: float = Field(default=0.25, ge=0)  # several photographs in one picture
    synthetic: SyntheticData | None = None  # whose renders make crowds
    scenes: tuple[SceneSource, ...] = ()
    sizes: tuple[float, float] = (0.035, 1.3)  # the longer side of a rendered hand's box over the picture's
    real_backgrounds: float = Field(default=0.3, ge=0, le=1)  # share of backgrounds that are photographs without a hand
    effects: float = Field(default=0.6, ge=0)  # strength of blur, noise, JPEG and colour changes

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not 0 < self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes is (low, high), both above zero")
        if self.crowds and self.synthetic is None:
            raise ValueError("crowds are made of renders: give synthetic, or set crowds to 0")
        if (self.photographs or self.mosaics) and not self.scenes:
            raise ValueError("photographs and mosaics are made of scenes: give them, or set both to 0")
        if not self.crowds + self.photographs + self.mosaics:
            raise ValueError("crowds, photographs and mosaics are all 0: nothing to learn from")
        return self


class DetectorLoss(Settings):
    """Weights of the parts of `handmesh.learn.detector.detector_loss`."""

    center: float = 1.0
    box: float = 1.0
    direction: float = 0.3
    handedness: float = 0.3


class DetectorConfig(Settings):
    """A run of the detector of hands (`handmesh.learn.detector`)."""

    detector: DetectorModel = DetectorModel()
    data: DetectorData
    loss: DetectorLoss = DetectorLoss()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=0, ge=0)
    # A hand mesh model with the same backbone, or a detector: its trunk, or all of it, is the beginning.
    start_from: str | None = None
    frozen_stem: bool = False  # the first convolutions stay as they began: on a CPU a sixth of the time of a step
    resolution: int = Field(default=256, ge=64, le=512, multiple_of=16)  # px, of the pictures to learn from
    steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=32, ge=1)  # pictures per step, in all processes together
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: of the perceptrons, on a CPU
    threads: int = Field(default=1, ge=1, le=MAX_THREADS)
    loader_workers: int = Field(default=1, ge=0, le=MAX_THREADS)  # per process
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    evaluate_every: int = Field(default=2_000, ge=1)
    validation: tuple[SceneSource, ...] = ()
    validation_side: int = Field(default=320, ge=64, le=1024, multiple_of=16)  # px, the longer side of a photograph


class TrainConfig(Settings):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig(synthetic=SyntheticData())
    augmentation: Augmentation = Augmentation()  # of synthetic hands
    photo_augmentation: PhotoAugmentation = PhotoAugmentation()  # of FreiHAND's and your own photographs
    loss: LossWeights = LossWeights()
    loss_norms: LossNorms = LossNorms()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=0, ge=0)  # of the weights, the order of samples and their augmentation
    # Name under which `handmesh weights add` stored ImageNet weights of this backbone; None starts from random ones.
    pretrained: str | None = None
    # A model file, or the name of the bundled model, to start from instead. What `model` does not say is as that
    # model's, but for its drop path; a reparameterized one is unreparameterized, and one with a smaller backbone grows:
    # fastvit_t8 into fastvit_t12 or fastvit_s12, fastvit_sa12 into sa24, sa36 or ma36.
    start_from: str | None = None
    # The result: where the mean of the tuned weights and of those it started from is better over all validation sets
    # taken together, that mean (Wortsman et al., "Robust fine-tuning", CVPR 2022). A run on few photographs forgets.
    average_with_start: bool = False
    # Train the network as it is shipped, its branches and batch norms folded away: 1.5 times as fast on a CPU, and
    # without the noise of small batches' statistics. To go on from a trained model, at a low learning rate.
    reparameterized: bool = False
    steps: int = Field(default=30_000, ge=1)  # of the optimiser
    epochs: float | None = Field(default=None, gt=0)  # takes the place of steps: so many times all sources' samples
    # Samples per step, in all processes together. Batch norm sees batch_size / accumulation of them at a time.
    batch_size: int = Field(default=16, ge=2)
    accumulation: int = Field(default=1, ge=1)  # pieces that a batch is computed in, where memory is short
    # Optional easy start: this share of the steps runs at a lower resolution (fewer pixels, more samples per second).
    low_resolution: int | None = Field(default=None, ge=64, multiple_of=32)
    low_resolution_share: float = Field(default=0.0, ge=0, lt=1)  # of the steps; 0: none
    # bfloat16: autocast on a GPU; on a CPU the backbone's perceptrons alone, because nothing else gains there. float16:
    # autocast with a scaled loss, for GPUs before Ampere, which have no bfloat16 (the paper's RTX 2080 Ti; V100, T4).
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False  # torch.compile: minutes at the start, fewer of them later; worth it for hours on a GPU
    threads: int = Field(default=1, ge=1, le=MAX_THREADS)  # torch intra-op threads on a CPU
    loader_workers: int = Field(default=1, ge=0, le=MAX_THREADS)  # per process
    log_every: int = Field(default=50, ge=1)  # steps
    tensorboard: bool = True  # scalars and overlays too, where it is installed
    checkpoint_every: int = Field(default=500, ge=1)  # steps; what an interruption costs at most
    keep_checkpoints: int = Field(default=3, ge=1)  # the last so many states
    evaluate_every: int = Field(default=2_000, ge=1)  # steps
    evaluation_count: int = Field(default=512, ge=1)  # images at most of each validation set
    # Which evaluation's weights become the model: the last one's, or those with the best joints on the validation sets.
    # test_set chooses by FreiHAND's test set: such scores do not compare with published ones, and the report says so.
    select: Literal["last", "validation", "test_set"] = "last"

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.low_resolution_share > 0 and self.low_resolution is None:
            raise ValueError("low_resolution_share needs low_resolution")
        ranges = {
            "augmentation.margin": self.augmentation.margin,
            "augmentation.context_scale": self.augmentation.context_scale,
            "photo_augmentation.context_scale": self.photo_augmentation.context_scale,
            "photo_augmentation.downscale_px": self.photo_augmentation.downscale_px,
        }
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} is (low, high), both above zero")
        if self.photo_augmentation.downscale_px[0] < 8:
            raise ValueError("photo_augmentation.downscale_px begins below 8 pixels: nothing of a hand is left")
        if self.data.live is not None and self.epochs is not None:
            raise ValueError("epochs count what a source holds, and data.live has no end: give steps")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}")
        decay_at = self.optimizer.decay_at
        if not all(0 < share < 1 for share in decay_at) or list(decay_at) != sorted(decay_at):
            raise ValueError("optimizer.decay_at holds shares of the run, between 0 and 1, in increasing order")
        if self.pretrained is not None and self.start_from is not None:
            raise ValueError("pretrained and start_from are two beginnings: give one of them")
        if self.reparameterized and self.start_from is None:
            raise ValueError("reparameterized goes on from a trained model: give start_from")
        if self.average_with_start and not (self.reparameterized and self.select == "last"):
            raise ValueError("average_with_start goes with reparameterized: true and select: last")
        if self.reparameterized and self.model.drop_path > 0:
            raise ValueError(
                "a reparameterized network has no drop path: set model.drop_path to 0, or reparameterized to false"
            )
        if self.select == "test_set" and self.data.freihand is None:
            raise ValueError("select: test_set means FreiHAND's, and there is no data.freihand")
        if (
            self.select == "test_set"
            and self.data.freihand is not None
            and self.data.freihand.crop_shares.keys() == {"box"}
        ):
            raise ValueError("select: test_set goes with crop frame or metro: FreiHAND's test set gives no boxes")
        return self


def shipped_configs() -> dict[str, Path]:
    """The settings that ship with the package, by name: in the package of a wheel, in configs/ of the source tree."""
    package = Path(__file__).parent
    folder = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(config: str | Path) -> Path:
    """The file of a configuration: a path, or a shipped one's name, also written as its path in the source tree.

    Raises ConfigError, which lists the shipped ones.
    """
    path, shipped = Path(config), shipped_configs()
    if path.is_file():
        return path
    if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs")) and path.stem in shipped:
        return shipped[path.stem]
    if path.exists():
        raise ConfigError(f"{path} cannot be read as YAML: it is a folder.")
    raise ConfigError(f"No configuration at {path}. Give the path of a YAML file, or one of {', '.join(shipped)}.")


def load_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file or a shipped configuration, apply `key.path=value` overrides, check everything.

    `extends: NAME|PATH` in a file: it holds what differs from that configuration, section by section.

    Raises ConfigError for a missing or malformed file, an unknown key (with the nearest known one) or a wrong value,
    and for the settings of a detector.
    """
    settings = load_any_config(config, overrides)
    if isinstance(settings, DetectorConfig):
        raise ConfigError(f"{config} is of a detector, wanted the settings of a hand mesh model.")
    return settings


def load_any_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig | DetectorConfig:
    """As `load_config`; a file with the key `detector` is of a detector of hands."""
    path = None if config is None else find_config(config)
    tree = {} if path is None else _read_tree(path)
    for override in overrides:
        _apply_override(tree, override)
    where = str(path) if path else "settings"
    return parse_detector_config(tree, where) if "detector" in tree else parse_config(tree, where)


def _read_tree(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file over those of the configuration that its `extends` names. `above`: who extends it."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, found {type(tree).__name__}.")
    tree = tree or {}
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends is {base!r}, wanted the name or the path of another configuration.")
    beside = path.parent / base
    base_path = beside if beside.is_file() else find_config(base)
    if base_path.resolve() in (*above, path.resolve()):
        raise ConfigError(f"{path} extends {base}, which comes back to it: a configuration cannot extend itself.")
    return _merged(_read_tree(base_path, (*above, path.resolve())), tree)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; all other values, lists too, are replaced."""
    both = {**base, **changes}
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            both[key] = _merged(base[key], value)
    return both


def parse_config(tree: dict[str, Any], where: str) -> TrainConfig:
    """Build a TrainConfig from plain values, as read from YAML or from a checkpoint. Raises ConfigError."""
    return _parse(TrainConfig, _with_new_names(tree, where), where)


def parse_detector_config(tree: dict[str, Any], where: str) -> DetectorConfig:
    """As `parse_config`, of a detector."""
    return _parse(DetectorConfig, tree, where)


def _parse(kind: type[Kind], tree: dict[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate(_plain(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_describe(problem, kind) for problem in error.errors())) from None


def flat_settings(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(tree, dict | list):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flat_settings(value, f"{name}.{key}" if name else str(key))
    return flat


def _with_new_names(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """A copy in which no setting has a name of `RENAMED_KEYS` any more."""
    tree, found = copy.deepcopy(tree), []
    for old, new in RENAMED_KEYS.items():
        *path, name = old.split(".")
        section: Any = tree
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            continue
        if new.split(".")[-1] in section:
            raise ConfigError(f"{where}: {old} is the former name of {new}, and both are given: leave it out.")
        section[new.split(".")[-1]] = section.pop(name)
        found.append(f"{old} is now {new}")
    if found:
        logger.warning("%s: former names of settings: %s.", where, "; ".join(found))
    return tree


def _plain(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 (no dot) as text: turn such text into the number it was meant to be."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key.path=value, for example optimizer.learning_rate=1e-3.")
    *parents, leaf = key.split(".")
    node: Any = tree
    for name in parents:
        node = node[_place(node, name, override)] if isinstance(node, list) else node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a section.")
    try:
        node[_place(node, leaf, override) if isinstance(node, list) else leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from None


def _place(entries: list[Any], name: str, override: str) -> int:
    """Which entry of a list is meant."""
    if not (name.isdecimal() and int(name) < len(entries)):
        raise ConfigError(f"--set {override!r}: {name!r} is none of its list's entries, 0 to {len(entries) - 1}.")
    return int(name)


def _describe(problem: Any, kind: type[Settings]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "value_error":  # ours, and it says what was found
        return f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    if problem["type"] != "extra_forbidden":
        return f"{name or 'settings'}: {problem['msg']}, found {problem['input']!r}"
    section: Any = kind
    for part in path[:-1]:
        section = _section(section.model_fields[part].annotation) if part in section.model_fields else section
    known = sorted(section.model_fields)
    nearest = get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"{name} is not a setting; {hint}"


def _section(annotation: Any) -> Any:
    """The settings class in an annotation such as `FreiHandData | None` or `tuple[PhotoData, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
