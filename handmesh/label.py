"""Labels for photographs of hands, without a studio: 2D keypoints, somebody's or your own, and a hand fitted to them.

    labels = label_hands([(Path("photo.jpg"), SeenHand(keypoints, Handedness.LEFT))], load_predictor())
    labels[0].record                # a line of the JSONL that training reads (docs/how_to/data.md)
    labels[0].reason                # why there is none, or only a part

Keypoints alone teach a network where joints are drawn, and leave depth to be guessed. So the network that we have looks
at each hand (one pass, in a crop that points up), its answer is the start of a fit (`handmesh.hand.fit`) that stays
near it, and what reprojects well becomes a complete label: keypoints, pose and shape in our definition. What does not
keeps the keypoints alone, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.draw.colors import HAND_COLORS
from handmesh.draw.render import ImageMesh, overlay_meshes, render_meshes
from handmesh.draw.sheet import captioned
from handmesh.draw.skeleton import draw_skeleton
from handmesh.errors import ConfigError, ImageError
from handmesh.files.image import read_image
from handmesh.geometry.crop import CropTransform
from handmesh.geometry.normals import vertex_normals
from handmesh.geometry.rotation import nearest_rotation, vector_from_matrix
from handmesh.hand import JOINT_NAMES, Handedness, upright_rotation
from handmesh.hand.arrays import HandArrays, both_sides
from handmesh.hand.definitions import joints_from_mano
from handmesh.hand.fit import MIN_KEYPOINTS, FitStart, HandFit, fit_hand
from handmesh.hand.models import has_mano_joints
from handmesh.predict import HandPrediction, Predictor

Floats = NDArray[np.float64]

CROP_MARGIN = 1.3  # of the keypoints' box: what the network is shown
_CHUNK = 128  # hands in work at a time
_MAX_BOX = 4  # a hand's box over the picture's longer side: beyond, a keypoint is a mistake
# A hand is cut out of so much of the photograph around its box (of the box), reduced to a box of so many pixels ...
_CUT_MARGIN, _CUT_BOX, _CUT_ROUNDS = 0.7, 96.0, 3
# ... if so much of the fitted hand's silhouette is in what was cut out, and that is at most so many times as large.
_CUT_AGREEMENT, _CUT_LARGEST = 0.85, 3.5
TILE = 224  # px, the height of a picture of a label


@dataclass(frozen=True)
class KeypointDefinition:
    """How somebody's 21 keypoints (FreiHAND's order) differ from the joints of our own hand."""

    name: str
    mano: bool = False  # they are MANO's joints: what `joints_from_mano` takes
    # Our tips lie so far beyond theirs, as a share of the last joint's distance to theirs in the picture.
    tip_extension: float = 0.0
    # Our wrist lies so far beyond theirs, as a share of the middle finger's knuckle's distance to theirs.
    wrist_extension: float = 0.0
    # How far they can be trusted to mean the same joint: wrist, thumb base, knuckles; all others count in full.
    wrist: float = 1.0
    thumb_base: float = 1.0
    knuckles: float = 1.0

    @property
    def weights(self) -> Floats:
        """(21,)"""
        special = {"wrist": self.wrist, "thumb_cmc": self.thumb_base}
        special |= {name: self.knuckles for name in JOINT_NAMES if name.endswith("_mcp") and name != "thumb_mcp"}
        return np.array([special.get(name, 1.0) for name in JOINT_NAMES])

    def apply(self, keypoints: Floats) -> Floats:
        """(21, 2) theirs -> ours, as well as it is known."""
        moved = joints_from_mano(keypoints) if self.mano else keypoints.copy()
        # Along a bone whose other end is not known nothing moves.
        for joint, name in enumerate(JOINT_NAMES):
            if name.endswith("_tip"):
                moved[joint] += self.tip_extension * np.nan_to_num(keypoints[joint] - keypoints[joint - 1])
        palm = keypoints[0] - keypoints[JOINT_NAMES.index("middle_mcp")]
        moved[0] += self.wrist_extension * np.nan_to_num(palm)
        return moved


OWN = KeypointDefinition("handmesh")
# What is left of the difference, on average 2 mm, is largest at the knuckles and the thumb's base.
FREIHAND = KeypointDefinition("FreiHAND", mano=True, thumb_base=0.5, knuckles=0.5)
# Measured on white backgrounds, where a silhouette shows the skin's edge: MediaPipe's tips lie 28 to 32 % of the last
# joint's length short of it, ours about 8 %. On 5,447 photographs its wrist lies nearer to the middle finger's knuckle
# than the fitted hand's, by 9 % of the palm's length where the palm is seen and 11 where the back is. How far to the
# side it lies depends on the pose, and so do its thumb base (4 mm) and its knuckles (1 to 2 mm): weights, not offsets.
MEDIAPIPE = KeypointDefinition(
    "MediaPipe", tip_extension=0.22, wrist_extension=0.1, wrist=0.2, thumb_base=0.2, knuckles=0.5
)


def keypoint_definition(name: str, hand: HandArrays) -> KeypointDefinition:
    """Whose keypoints, and the hand that is to be fitted to them. Raises ConfigError.

    Our own hand's are "handmesh": of one's own, too, who points at where bones meet.
    """
    named = {one.name.lower(): one for one in (OWN, FREIHAND, MEDIAPIPE)}
    if name not in named:
        raise ConfigError(f"Keypoints by {name!r}: wanted {', '.join(sorted(named))}.")
    return OWN if named[name].mano and has_mano_joints(hand.sha256) else named[name]


class SeenHand(NamedTuple):
    """A hand as it was pointed out in a photograph."""

    keypoints: Floats  # (21, 2) px; not-a-number where not known
    handedness: Handedness
    # Mean distance from what was said of the mirrored photograph, over the hand's box; infinite: nothing was.
    disagreement: float = 0.0


UNSEEN = SeenHand(np.full((len(JOINT_NAMES), 2), np.nan), Handedness.RIGHT)  # nobody pointed a hand out

Landmarker = Callable[[NDArray[np.uint8]], Sequence[tuple[Floats, Handedness, float]]]  # photo -> points, side, score


def seen_twice(image: NDArray[np.uint8], landmarks: Landmarker) -> list[SeenHand]:
    """The hands that somebody sees in a photograph, each compared with what he sees in its mirror image.

    A hand that is found in one of the two alone, or as the same side in both (so as another hand in the mirror), has an
    infinite disagreement. `landmarks`: `MediaPipeHands.landmarks`, or whoever answers like it.
    """
    mirrored = []
    for points, side, _ in landmarks(np.ascontiguousarray(image[:, ::-1])):
        mirrored.append((np.column_stack([image.shape[1] - 1 - points[:, 0], points[:, 1]]), side.other))
    hands: list[SeenHand] = []
    for points, side, _ in landmarks(image):
        box = float(np.ptp(points, axis=0).max())
        if any(np.linalg.norm(points - hand.keypoints, axis=1).mean() < 0.3 * box for hand in hands):
            continue  # the same hand again
        distances = [
            float(np.linalg.norm(points - theirs, axis=1).mean()) / max(box, 1e-9)
            for theirs, other in mirrored
            if other == side
        ]
        hands.append(SeenHand(points, side, min(distances, default=np.inf)))
    return hands


@dataclass(frozen=True)
class LabelThresholds:
    """What is kept. Distances are means over the joints that count in full, over the longer side of their box."""

    complete: float = 0.035  # a fit this near is a complete label ...
    keypoints_only: float = 0.10  # ... up to here its keypoints are kept, beyond it nothing
    disagreement: float = 0.06  # between photograph and mirrored one: beyond it nothing is kept
    rotation: float = np.radians(50)  # a fit this far from the network's own orientation is no complete label
    min_box_px: float = 16.0  # the longer side of a hand's box


class LabelledHand(NamedTuple):
    """What became of one hand."""

    image: Path
    seen: SeenHand
    record: dict[str, Any] | None  # a line of JSONL, `image` as given; None: dropped
    reason: str  # why it is not complete; empty for a complete label
    fit: HandFit | None  # of this one hand
    prediction: HandPrediction | None  # what the network said


def label_hands(
    hands: Iterable[tuple[Path, SeenHand]],
    predictor: Predictor,
    definition: KeypointDefinition = OWN,
    thresholds: LabelThresholds | None = None,
) -> Iterator[LabelledHand]:
    """One for each hand, in order. About 15 ms each on one core (AMD EPYC).

    A photograph that cannot be read, and a hand with fewer than four keypoints (also once they are brought to where our
    joints are), none that counts in full, or less than half in the picture, are dropped with that reason.
    """
    limits = LabelThresholds() if thresholds is None else thresholds
    chunk: list[tuple[Path, SeenHand]] = []
    for hand in hands:
        chunk.append(hand)
        if len(chunk) == _CHUNK:
            yield from _label_chunk(chunk, predictor, definition, limits)
            chunk = []
    yield from _label_chunk(chunk, predictor, definition, limits)


def _label_chunk(
    chunk: Sequence[tuple[Path, SeenHand]],
    predictor: Predictor,
    definition: KeypointDefinition,
    limits: LabelThresholds,
) -> list[LabelledHand]:
    labels: dict[int, LabelledHand] = {}
    predictions: dict[int, HandPrediction] = {}
    ours = [definition.apply(seen.keypoints) for _, seen in chunk]
    for index, (path, seen) in enumerate(chunk):
        try:
            image = read_image(path)
            reason = _unusable(seen, image.shape, limits) or _unfit(ours[index], definition)
        except ImageError as error:
            reason = str(error)
        if reason:
            labels[index] = LabelledHand(path, seen, None, reason, None, None)
            continue
        known = seen.keypoints[np.isfinite(seen.keypoints).all(axis=1)]
        rotation = upright_rotation(seen.keypoints) if len(known) == len(JOINT_NAMES) else 0.0
        crop = CropTransform.around_points(known, CROP_MARGIN, rotation, seen.handedness == Handedness.LEFT)
        predictions[index] = predictor.predict_crops(image, [crop])[0]
    for side, hand in both_sides(predictor.engine.hand).items():
        rows = [index for index in predictions if chunk[index][1].handedness == side]
        if not rows:
            continue
        points = np.stack([ours[index] for index in rows])
        start = FitStart(
            # A network's float32 ones are off by more than a fit's own steps.
            nearest_rotation(np.stack([predictions[index].pose for index in rows]).astype(np.float64)),
            np.stack([predictions[index].betas for index in rows]).astype(np.float64),
        )
        fits = fit_hand(points, definition.weights, start=start, hand=hand)
        for row, index in enumerate(rows):
            fit = HandFit(*(value[row] for value in fits))
            labels[index] = _judged(*chunk[index], points[row], fit, predictions[index], definition, limits)
    return [labels[index] for index in range(len(chunk))]


def _unusable(seen: SeenHand, shape: tuple[int, ...], limits: LabelThresholds) -> str:
    """`shape`: of the photograph, height first."""
    known = seen.keypoints[np.isfinite(seen.keypoints).all(axis=1)]
    if len(known) < MIN_KEYPOINTS:
        return f"{len(known)} keypoints are known, a fit needs {MIN_KEYPOINTS}"
    inside = ((known > -0.5) & (known < np.array([shape[1], shape[0]]) - 0.5)).all(axis=1)
    if inside.mean() < 0.5:
        return f"{inside.sum()} of its {len(known)} keypoints are in the picture, labels need half of them"
    side = float(np.ptp(known, axis=0).max())
    if side > _MAX_BOX * max(shape[:2]):
        return f"the hand's box is {side:.4g} px, more than {_MAX_BOX} times the picture"
    if side < limits.min_box_px:
        return f"the hand's box is {side:.0f} px, labels need {limits.min_box_px:.0f}"
    if not np.isfinite(seen.disagreement):
        return "in the mirrored photograph it was not seen, or as a hand of the same side"
    if seen.disagreement > limits.disagreement:
        return (
            f"in the mirrored photograph it was seen {seen.disagreement:.3f} of its box elsewhere "
            f"(at most {limits.disagreement:g})"
        )
    return ""


def _unfit(points: Floats, definition: KeypointDefinition) -> str:
    """`points`: ours, as `definition` made them of theirs."""
    known = np.isfinite(points).all(axis=1)
    if known.sum() < MIN_KEYPOINTS:
        return f"{known.sum()} joints of ours follow from its keypoints, a fit needs {MIN_KEYPOINTS}"
    if not (known & (definition.weights >= 1)).any():
        return f"none of its keypoints means by {definition.name} what it means here: a fit could not be judged"
    return ""


def _judged(
    path: Path,
    seen: SeenHand,
    points: Floats,
    fit: HandFit,
    prediction: HandPrediction,
    definition: KeypointDefinition,
    limits: LabelThresholds,
) -> LabelledHand:
    weights = definition.weights
    trusted = np.isfinite(points).all(axis=1) & (weights >= 1)
    error = float(np.nanmean(np.where(trusted, fit.distances, np.nan)))
    cosine = (np.trace(prediction.pose[0].astype(np.float64).T @ fit.pose[0]) - 1) / 2
    rotation = float(np.arccos(np.clip(cosine, -1, 1)))
    if error > limits.keypoints_only:
        reason = f"no hand fits: {error:.3f} of the box away (at most {limits.keypoints_only:g})"
        return LabelledHand(path, seen, None, reason, fit, prediction)
    # Where the definitions differ, the fitted hand says where our joint is.
    keypoints = np.where(trusted[:, None], points, fit.keypoints)
    record: dict[str, Any] = {"image": str(path), "handedness": str(seen.handedness)}
    if error > limits.complete:
        reason = f"keypoints only: the fit is {error:.3f} of the box away (at most {limits.complete:g})"
    elif rotation > limits.rotation:
        reason = f"keypoints only: the fit turned the hand by {np.degrees(rotation):.0f} degrees"
    else:
        reason = ""
    known = np.ones(len(JOINT_NAMES), bool) if not reason else trusted
    record["keypoints"] = [
        [round(float(x), 2), round(float(y), 2), 1] if seen_joint else None
        for (x, y), seen_joint in zip(keypoints, known, strict=True)
    ]
    if not reason:
        record["pose"] = np.round(vector_from_matrix(fit.pose), 4).tolist()
        record["betas"] = np.round(fit.betas, 3).tolist()
    record["facts"] = {"fit_error": round(error, 4), "score": round(float(prediction.score), 3)}
    return LabelledHand(path, seen, record, reason, fit, prediction)


def alpha_of(labelled: LabelledHand, right_hand: HandArrays) -> NDArray[np.uint8] | None:
    """How much of each pixel of the photograph is the hand that was fitted there, with its arm: (H, W) uint8.

    GrabCut (Rother et al., SIGGRAPH 2004; OpenCV's), begun with the silhouette of the mesh: inside it is hand, what
    looks like it and hangs together with it, too. None where the two do not agree. `right_hand` as for `draw_label`.
    """
    assert labelled.fit is not None
    image, fit = read_image(labelled.image), labelled.fit
    mesh = _in_picture(fit, both_sides(right_hand)[labelled.seen.handedness])
    low, high = fit.keypoints.min(axis=0), fit.keypoints.max(axis=0)
    box = float((high - low).max())
    size = np.array([image.shape[1], image.shape[0]])
    x0, y0 = np.clip(np.floor(low - _CUT_MARGIN * box), 0, size - 1).astype(int)
    x1, y1 = np.clip(np.ceil(high + _CUT_MARGIN * box), 1, size).astype(int)
    if min(x1 - x0, y1 - y0) < 2:
        return None
    scale = min(1.0, _CUT_BOX / box)
    small = cv2.resize(image[y0:y1, x0:x1], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    silhouette = render_meshes([mesh], (image.shape[1], image.shape[0]))[y0:y1, x0:x1, 3]
    inside = cv2.resize(silhouette, small.shape[1::-1], interpolation=cv2.INTER_AREA) > 127
    # The fit is a few hundredths of the box off.
    core = cv2.erode(inside.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))) > 0
    if not core.any():
        return None
    guess = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    guess[core] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, guess, (0, 0, 1, 1), *models, _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)  # the rectangle is not used
    found = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts = cv2.connectedComponents(found, connectivity=4)
    kept = np.isin(parts, np.unique(parts[core])) & (found > 0)
    if kept[inside].mean() < _CUT_AGREEMENT or kept.sum() > _CUT_LARGEST * inside.sum():
        return None
    alpha = np.zeros(image.shape[:2], np.uint8)
    soft = cv2.GaussianBlur(kept.astype(np.uint8) * 255, (0, 0), 0.8)
    alpha[y0:y1, x0:x1] = cv2.resize(soft, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    return alpha


def _in_picture(fit: HandFit, hand: HandArrays) -> ImageMesh:
    """The fitted hand as it lies in the photograph, px. `hand`: of its side."""
    vertices = fit.vertices(hand)
    size, *shift = fit.camera
    placed = size * (vertices + np.array([*shift, 0.0]))
    return ImageMesh(placed, hand.faces, vertex_normals(vertices, hand.faces))


def draw_label(labelled: LabelledHand, right_hand: HandArrays) -> NDArray[np.uint8]:
    """(224, 448, 3) uint8 RGB: the photograph around a hand, with what was given and with what was fitted.

    Only of a hand that is kept; `right_hand` is the right one of the hand model that was fitted.
    """
    assert labelled.fit is not None
    image = read_image(labelled.image)
    known = labelled.seen.keypoints[np.isfinite(labelled.seen.keypoints).all(axis=1)]
    crop = CropTransform.around_points(known, 1.6, 0.0, mirror=False)
    pixels = crop.warp(image, TILE)
    scale = TILE / crop.size

    def place(points: Floats) -> Floats:
        return (crop.to_ndc(points) + 1) * TILE / 2 - 0.5

    bones = draw_skeleton(pixels, place(labelled.seen.keypoints))
    hand = both_sides(right_hand)[labelled.seen.handedness]
    mesh = _in_picture(labelled.fit, hand)
    xy, depth = place(mesh.vertices_image[:, :2].astype(np.float64)), mesh.vertices_image[:, 2:] * scale
    color = HAND_COLORS[labelled.seen.handedness]
    mesh = replace(mesh, vertices_image=np.hstack([xy, depth]), color=color)
    return captioned(np.hstack([bones, overlay_meshes(pixels, [mesh])]), labelled.reason or "complete")
