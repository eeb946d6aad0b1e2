"""Test sets: images with the true hands in them, as `handmesh.evaluate.scores` and `handmesh.evaluate.inference` want
them.

Three forms on disk: FreiHAND's folder (evaluation_xyz.json, evaluation_verts.json, evaluation_K.json, evaluation/rgb/),
what `handmesh data prepare` made of its archives, or a folder with labels.jsonl (docs/explain/synth.md).
For scoring a prediction file the images need not be there; they are wanted for the report's pictures and for running a
model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats import holds_photos, open_photos, sets_in, sets_near
from handmesh.data.formats.freihand import PREPARED, FreiHand, labelled_hand_of
from handmesh.data.formats.records import LabelledPhotos, parse_labels
from handmesh.data.sample import HandLabels, LabelledHand, PhotoLabels, RawSample, hand_labels
from handmesh.errors import DataError
from handmesh.evaluate.official_files import HandPoints, read_points
from handmesh.files.image import read_image
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import BONES, JOINT_NAMES, VERTEX_COUNT, HandArrays, Handedness, both_sides
from handmesh.hand.models import hands_at_hand

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# A mesh of another topology, read with our faces, has edges all over the hand.
_EDGE_TOLERANCE = 0.35
# Metres between given joints and those of the posed hand, on average: rounding, and where the hand is the model's own
# (whose poses and shapes they are said to be) as much as joints that were measured apart from the mesh may be off.
_SAME_HAND, _OWN_HAND = 1e-4, 5e-3
_MAX_ITA = 180.0  # degrees: it is an angle
_POSED_AT_ONCE = 256  # hands: 0.2 MB each on the way

_SECOND_ARCHIVE = (
    "FreiHAND's evaluation annotations come in a second archive, FreiHAND_pub_v2_eval.zip, which unpacks into the same "
    "folder."
)
_FREIHAND_FILES = ("evaluation_xyz.json", "evaluation_verts.json")


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """N images and the hands in them. Metres and pixels, cam and image frames."""

    path: Path
    kind: str  # "FreiHAND", or the kind of one of `FORMATS`
    truth: HandPoints  # of a set `in_space`; without joints and vertices otherwise: not-a-number
    handedness: tuple[Handedness, ...]  # (N,)
    intrinsics: Array | None  # (N, 3, 3) px
    images: tuple[Path, ...]  # (N,) where they belong; none of them may be there, and there are none if `packed`
    keypoints: Array | None  # (N, 21, 2) px
    visible: NDArray[np.bool_] | None  # (N, 21) which keypoints are said to be so; of a set not `in_space`: known
    boxes: tuple[Array | None, ...]  # (N,) given boxes x0, y0, x1, y1 px, not made from the labels here
    facts: tuple[Mapping[str, Any], ...]  # (N,) whatever else the set says about an image
    packed: FreiHand | None = None  # where the images are if they are not files
    mano_joints: bool = False  # whether its joints and keypoints lie where MANO has them
    labelled_hand: LabelledHand | None = None  # whose vertices the true ones are; None: not known, or there are none
    meshes: str | None = None  # how the true vertices were come by, where they were not given
    in_space: bool = True  # whether 3D joints are known; if not, keypoints are

    def __len__(self) -> int:
        return len(self.truth.joints)

    def camera(self, index: int) -> Intrinsics | None:
        """The camera of one image, if the set knows it."""
        return None if self.intrinsics is None else Intrinsics.from_matrix(self.intrinsics[index])

    @property
    def shown(self) -> NDArray[np.bool_] | None:
        """(N, 21) which joints nothing hides: what `facts` say is not occluded, else, of a set in space, `visible`."""
        occluded = [facts.get("occluded") for facts in self.facts]
        if all(isinstance(hidden, list) for hidden in occluded):
            return ~np.array(occluded, bool)
        return self.visible if self.in_space else None

    def has_images(self) -> bool:
        """Whether the first image is there."""
        return self.packed is not None or (bool(self.images) and self.images[0].is_file())

    def sample(self, index: int) -> RawSample:
        """One image with its labels. Raises ImageError or DataError when the image cannot be read."""
        hand = hand_labels(
            keypoints=None if self.keypoints is None else self.keypoints[index],
            keypoints_known=None if self.in_space or self.visible is None else self.visible[index],
            joints=self.truth.joints[index] if self.in_space else None,
            right=self.handedness[index] == Handedness.RIGHT,
            dtype=np.float64,
        )
        labels = PhotoLabels(hand, self.boxes[index], self.camera(index))
        if self.packed is not None:
            return RawSample(f"image {index}", self.packed.image(index), labels, for_scoring=True)
        return RawSample(self.images[index].name, read_image(self.images[index]), labels, for_scoring=True)

    def first(self, count: int) -> EvaluationSet:
        """The first `count` images only."""

        def cut(values: Any) -> Any:
            return None if values is None else values[:count]

        return replace(
            self,
            truth=HandPoints(self.truth.joints[:count], cut(self.truth.vertices)),
            handedness=self.handedness[:count],
            intrinsics=cut(self.intrinsics),
            images=self.images[:count],
            keypoints=cut(self.keypoints),
            visible=cut(self.visible),
            boxes=self.boxes[:count],
            facts=self.facts[:count],
        )


def open_evaluation_set(path: Path, hand: HandArrays | None = None) -> EvaluationSet:
    """Open FreiHAND's folder, prepared or not, or one with labels.jsonl, or a JSONL file.

    `hand`: the right hand of the model that is to be scored. A labels.jsonl may give pose and betas in place of
    vertices; they are then posed with that hand, the built-in one or MANO, whichever gives the joints of the labels.
    Raises DataError when the folder is none of these, or damaged.
    """
    path = Path(path)
    if holds_photos(path):
        return _with_labels(path, open_photos(path, for_scoring=True), hand)
    missing = [name for name in _FREIHAND_FILES if not (path / name).is_file()]
    # HO-3D's folder may have files of FreiHAND's names, too.
    if not (path / "evaluation_K.json").is_file() and (found := sets_in(path)) is not None:
        raise DataError(f"{path} is no data set. {found}")
    if not missing:
        return _open_freihand(path)
    if (path / "meta.json").is_file() or (path / PREPARED / "meta.json").is_file():
        return _open_prepared(path)
    if len(missing) < len(_FREIHAND_FILES) or (path / "evaluation_K.json").is_file():
        raise DataError(f"{path} has no {missing[0]}: {_SECOND_ARCHIVE}")
    raise DataError(
        sets_near(path)
        or f"{path} is no test set: wanted FreiHAND's folder ({', '.join(_FREIHAND_FILES)}), a folder with "
        "labels.jsonl, or a JSONL file."
    )


def match_hand(vertices: Array | None) -> HandArrays | None:
    """The right hand model in whose order (N, 778, 3) vertices are, among those at hand.

    None for other meshes, and for MANO's where MANO was not added: its faces are licensed with it.
    """
    if vertices is None or vertices.shape[1] != VERTEX_COUNT:
        return None
    return next((hand for _, hand in hands_at_hand() if _edges_fit(hand, vertices[0])), None)


def _edges_fit(hand: HandArrays, vertices: Array) -> bool:
    def lengths(points: Array) -> Array:
        return np.linalg.norm(points[hand.faces[:, 0]] - points[hand.faces[:, 1]], axis=-1)

    ratio = lengths(vertices) / lengths(hand.v_template)
    typical = float(np.median(ratio))
    return float(np.median(np.abs(ratio / max(typical, 1e-12) - 1))) < _EDGE_TOLERANCE


# Facts that the report sorts errors by


def palm_angles(joints: Array, handedness: Sequence[Handedness]) -> Array:
    """(N,) degrees between the palm's outward normal and the direction to the camera: 0 palm, 90 edge, 180 back.

    `joints` (N, 21, 3) in the cam frame. The palm is the triangle of wrist, index and pinky knuckles.
    """
    wrist, index, pinky = (joints[:, JOINT_NAMES.index(name)] for name in ("wrist", "index_mcp", "pinky_mcp"))
    normal = np.cross(index - wrist, pinky - wrist)
    normal *= np.where([side == Handedness.RIGHT for side in handedness], 1.0, -1.0)[:, None]
    toward_camera = -(wrist + index + pinky)
    cosine = (normal * toward_camera).sum(axis=1) / np.maximum(
        np.linalg.norm(normal, axis=1) * np.linalg.norm(toward_camera, axis=1), 1e-12
    )
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def hand_lengths(joints: Array) -> Array:
    """(N,) metres from the wrist over the middle finger's joints to its tip: how large the hand is."""
    middle = [joint for joint, name in enumerate(JOINT_NAMES) if name.startswith("middle")]
    chain = [bone for bone in BONES if bone[1] in middle]
    return np.sum([np.linalg.norm(joints[:, child] - joints[:, parent], axis=1) for parent, child in chain], axis=0)


# Reading


def _open_freihand(path: Path) -> EvaluationSet:
    joints = read_points(path / "evaluation_xyz.json", len(JOINT_NAMES))
    vertices = read_points(path / "evaluation_verts.json")
    if len(joints) != len(vertices):
        raise DataError(
            f"{path}: {len(joints)} entries in evaluation_xyz.json, {len(vertices)} in evaluation_verts.json."
        )
    intrinsics = None
    if (path / "evaluation_K.json").is_file():
        intrinsics = read_points(path / "evaluation_K.json", 3)
    images = tuple(path / "evaluation" / "rgb" / f"{index:08d}.jpg" for index in range(len(joints)))
    return _freihand(path, HandPoints(joints, vertices), intrinsics, images, labelled_hand_of(path))


def _open_prepared(path: Path) -> EvaluationSet:
    packed = FreiHand(path, "evaluation")
    missing = [name for name in ("xyz", "verts") if name not in packed.arrays]
    if missing:
        raise DataError(f"{packed.path} has no evaluation_{missing[0]}.npy: {_SECOND_ARCHIVE}")
    joints, vertices, intrinsics = (np.array(packed.arrays[name], np.float64) for name in ("xyz", "verts", "K"))
    return _freihand(path, HandPoints(joints, vertices), intrinsics, (), packed.labelled_hand, packed)


def _freihand(
    path: Path,
    truth: HandPoints,
    intrinsics: Array | None,
    images: tuple[Path, ...],
    labelled_hand: LabelledHand,
    packed: FreiHand | None = None,
) -> EvaluationSet:
    count = len(truth.joints)
    keypoints = None
    if intrinsics is not None:
        if len(intrinsics) != count:
            raise DataError(f"{path}: {count} entries in evaluation_xyz.json, {len(intrinsics)} in evaluation_K.json.")
        projected = truth.joints @ np.swapaxes(intrinsics, 1, 2)
        keypoints = projected[..., :2] / projected[..., 2:]
    return EvaluationSet(
        path=path,
        kind="FreiHAND",
        truth=truth,
        handedness=(Handedness.RIGHT,) * count,
        intrinsics=intrinsics,
        images=images,
        keypoints=keypoints,
        visible=None,
        boxes=(None,) * count,
        facts=({},) * count,
        packed=packed,
        mano_joints=labelled_hand.mano_joints,
        labelled_hand=labelled_hand,
    )


def _with_labels(path: Path, data: LabelledPhotos, hand: HandArrays | None) -> EvaluationSet:
    records = [data.record(index) for index in range(len(data))]
    labels = [parse_labels(record, data.where(index)) for index, record in enumerate(records)]
    in_space = any(known.hand.joints_known for known in labels)
    for index, (record, known) in enumerate(zip(records, labels, strict=True)):
        if in_space and not known.hand.joints_known:
            raise DataError(
                f"{data.where(index)}: no 'joints', and other lines have them: give them in all or in none."
            )
        if not in_space and record.get("keypoints") is None:
            raise DataError(f"{data.where(index)}: neither 'joints' nor 'keypoints': a test set needs one of them.")
    seen = [known.keypoints_or_projection() for known in labels]
    if in_space:
        keypoints = _stacked([None if found is None or not np.isfinite(found[0]).all() else found[0] for found in seen])
    else:  # those that are not known are told by `visible`
        keypoints = np.stack([np.full((len(JOINT_NAMES), 2), np.nan) if found is None else found[0] for found in seen])
    handedness = tuple(known.handedness for known in labels)
    vertices = _stacked([_known(known.hand, "vertices") for known in labels])
    translations = _stacked([_translation(record, data.where(index)) for index, record in enumerate(records)])
    joints = _stacked([known.hand.joints if in_space else np.full((len(JOINT_NAMES), 3), np.nan) for known in labels])
    assert joints is not None
    labelled_hand, meshes, mano_joints = data.labelled_hand, None, data.mano_joints
    pose, betas = (_stacked([_known(known.hand, name) for known in labels]) for name in ("pose", "betas"))
    if not in_space:
        vertices = None  # without joints it is not known where a mesh lies
    elif vertices is None and pose is not None and betas is not None:
        posed = _pose_meshes(pose, betas, handedness, joints, translations, hand)
        vertices, labelled_hand, meshes = posed.vertices, posed.hand, posed.how
        if data.labelled_hand is None and posed.hand is not None:  # nobody said it, but the joints are that hand's
            mano_joints = posed.hand.mano_joints
    return EvaluationSet(
        path=path,
        kind=data.kind,
        truth=HandPoints(joints, vertices),
        handedness=handedness,
        intrinsics=_stacked([None if known.intrinsics is None else known.intrinsics.matrix for known in labels]),
        images=tuple(data.path.parent / record["image"] for record in records),
        keypoints=keypoints,
        visible=_stacked(
            [
                None if record.get("keypoints") is None else known.hand.keypoints_known
                for record, known in zip(records, labels, strict=True)
            ]
        ),
        boxes=tuple(known.box for known in labels),
        facts=tuple(_facts(record, data.where(index)) for index, record in enumerate(records)),
        mano_joints=mano_joints,
        labelled_hand=None if vertices is None else labelled_hand,
        meshes=meshes,
        in_space=in_space,
    )


def _known(hand: HandLabels[Any], name: str) -> Array | None:
    return getattr(hand, name) if getattr(hand, f"{name}_known") else None


def _stacked(arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """None when one of them is not known."""
    known = [array for array in arrays if array is not None]
    return np.stack(known) if len(known) == len(arrays) else None


def _translation(record: Mapping[str, Any], where: str) -> Array | None:
    if record.get("translation") is None:
        return None
    try:
        found = np.array(record["translation"], np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.shape != (3,) or not np.isfinite(found).all():
        raise DataError(f"{where}: 'translation' is {record['translation']!r}, wanted three numbers, metres.")
    return found


def _facts(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Whatever they are, but for a list of joints that are hidden and a number of the skin's tone, which are read."""
    facts = record.get("facts")
    if not isinstance(facts, dict):
        return {}
    hidden, tone = facts.get("occluded"), facts.get("ita_degrees")
    if isinstance(hidden, list) and not (
        len(hidden) == len(JOINT_NAMES) and all(isinstance(joint, int | float) for joint in hidden)
    ):
        raise DataError(
            f"{where}: 'occluded' in 'facts' is {repr(hidden)[:60]}, wanted true or false for each of the "
            f"{len(JOINT_NAMES)} joints."
        )
    if isinstance(tone, int | float) and not abs(tone) <= _MAX_ITA:
        raise DataError(f"{where}: 'ita_degrees' in 'facts' is {repr(tone)[:60]}, wanted degrees.")
    return facts


class _Posed(NamedTuple):
    vertices: Array | None  # None where no hand has the joints that the labels have
    hand: LabelledHand | None
    how: str  # for the report


def _pose_meshes(
    pose: Array,
    betas: Array,
    handedness: Sequence[Handedness],
    joints: Array,
    translations: Array | None,
    own: HandArrays | None,
) -> _Posed:
    """The meshes of the hand that comes nearest to the given joints, if it comes near enough.

    Without `translations` each is put where its given wrist is. Left hands are posed with the mirrored right one.
    """
    nearest: tuple[float, str, HandArrays, Array] | None = None
    for name, hand in _candidates(own):
        vertices = np.empty((len(pose), VERTEX_COUNT, 3))
        models = both_sides(hand)
        for side in set(handedness):
            chosen = np.flatnonzero([other == side for other in handedness])
            model = models[side]
            for part in np.array_split(chosen, math.ceil(len(chosen) / _POSED_AT_ONCE)):
                vertices[part] = model.shaped(betas[part]).posed(pose[part]).vertices
        if translations is None:
            vertices += joints[:, :1] - hand.joints_of(vertices)[:, :1]
        else:
            vertices += translations[:, None]
        off = float(np.linalg.norm(hand.joints_of(vertices) - joints, axis=-1).mean())
        if nearest is None or off < nearest[0]:
            nearest = off, name, hand, vertices
    assert nearest is not None
    off, name, hand, vertices = nearest
    if off < (_SAME_HAND if hand is not own else _OWN_HAND):
        how = f"posed with {name}, whose joints are {1000 * off:.2g} mm off the given ones on average"
        return _Posed(vertices, LabelledHand(name, hand.sha256), how)
    names = " or ".join(name for name, _ in _candidates(own))
    how = f"not scored: poses and shapes are not those of {names} (the joints are {1000 * off:.2g} mm off or more)"
    logger.warning("meshes are %s", how)
    return _Posed(None, None, how)


def _candidates(own: HandArrays | None) -> list[tuple[str, HandArrays]]:
    """Right hands that poses may belong to, the model's own first."""
    hands = [] if own is None else [("the model's own hand", own)]
    hands += [(source.title, hand) for source, hand in hands_at_hand()]
    return [
        (name, hand)
        for place, (name, hand) in enumerate(hands)
        if hand.sha256 not in [other.sha256 for _, other in hands[:place]]
    ]
