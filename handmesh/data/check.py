"""Is a data set what it claims to be? Every claim is a row: what was wanted, what was found, and whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats import holds_photos, open_photos
from handmesh.data.formats.freihand import (
    IMAGE_SIZE,
    OFFICIAL_COUNTS,
    FreiHand,
    available_splits,
    decode_mano,
    root_from_mano,
)
from handmesh.data.formats.records import LabelledPhotos, parse_labels, read_alpha
from handmesh.data.sample import PhotoLabels
from handmesh.errors import AssetError, ConfigError, DataError, ImageError
from handmesh.files.image import read_image
from handmesh.geometry.box import box_problem
from handmesh.hand import JOINT_NAMES, HandArrays, both_sides
from handmesh.hand.models import load_hand
from handmesh.metrics import pa_mean_error

Floats = NDArray[np.float64]

# What the official tool gives a prediction of all zeros on the real evaluation set: joints and vertices, as they are
# and aligned, in cm (README of the official repository, github.com/lmb-freiburg/freihand).
ZERO_SCORES_CM = {"xyz": (70.79, 4.73), "verts": (70.84, 5.07)}

_CHUNK = 256  # annotations read at a time
_ROOT = JOINT_NAMES.index("middle_mcp")
_SHOWN_PROBLEMS = 5
# Joints defined otherwise, and poses fitted to what people pointed at, lie up to 10 mm off; with other axes, another
# side or without the mean pose they are farther off.
_DECODED_OFF_MM = 15.0

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class CheckRow:
    """One claim about a data set."""

    subject: str
    wanted: str
    found: str
    passed: bool | None  # None: it could not be checked, or there is nothing to compare with

    def __post_init__(self) -> None:
        if self.passed is not None:  # a comparison of numpy's gives numpy's own bool, which `is False` never is
            object.__setattr__(self, "passed", bool(self.passed))


def check(path: Path, images: int | None = 200, progress: Progress | None = None) -> list[CheckRow]:
    """Check a prepared FreiHAND folder, or photographs in one of `FORMATS`.

    `images` is how many pictures are decoded, spread over the set; None: all. Raises DataError when `path` is neither.
    """
    path = Path(path)
    if holds_photos(path):
        return check_photos(open_photos(path), images, progress)
    return check_freihand(path, images=images, progress=progress)


# ---------------------------------------------------------------------------------------------------- FreiHAND


def check_freihand(
    directory: Path, hand: HandArrays | None = None, images: int | None = 200, progress: Progress | None = None
) -> list[CheckRow]:
    """All claims about a prepared FreiHAND. `hand` is the model of its labels; by default the one that it names."""
    splits = available_splits(directory)
    labelled = FreiHand(directory, splits[0]).labelled_hand
    synthetic = labelled.sha256 is not None  # one that `handmesh synth --like-freihand` drew, of whichever hand
    rows: list[CheckRow] = []
    why_no_hand = ""
    if hand is None:
        try:
            hand = load_hand(labelled.name)
        except (AssetError, ConfigError) as error:
            why_no_hand = f"not checked: {str(error).splitlines()[0]} See `handmesh mano add --help`."
    if hand is not None and synthetic and not labelled.matches(hand):
        why_no_hand, hand = f"not checked: of the hand {labelled}, and here is {hand.sha256[:12]}", None
    for split in splits:
        data = FreiHand(directory, split)
        rows += [
            replace(row, subject=f"{split}: {row.subject}")
            for row in _check_split(data, hand, why_no_hand, synthetic, images, progress)
        ]
    return rows


def _check_split(
    data: FreiHand,
    hand: HandArrays | None,
    why_no_hand: str,
    synthetic: bool,
    images: int | None,
    progress: Progress | None,
) -> Iterator[CheckRow]:
    count, arrays, official = data.annotation_count, data.arrays, OFFICIAL_COUNTS[data.split]
    yield CheckRow(
        "annotations",
        "any number (a synthetic set)" if synthetic else f"{official}",
        f"{count}: {', '.join(arrays)}",
        True if synthetic else count == official,
    )
    versions = 1 if data.split == "evaluation" else 4
    yield CheckRow(
        "images", f"{versions} x {count}", f"{len(data.versions)} x {count} ({', '.join(data.versions)})",
        len(data) == versions * count,
    )  # fmt: skip
    if not synthetic or "xyz" in arrays:
        missing = [name for name in ("xyz", "verts", "mano", "scale") if name not in arrays]
        found = "missing " + ", ".join(missing) if missing else "all there"
        if missing and data.split == "evaluation":
            found += ": they come in a second archive, FreiHAND_pub_v2_eval.zip"
        yield CheckRow("labels", "K, scale, xyz, verts, mano", found, not missing)
    yield from _check_camera(arrays["K"])

    sums = _Sums()
    for start in range(0, count, _CHUNK):
        chunk = {name: np.asarray(values[start : start + _CHUNK], np.float64) for name, values in arrays.items()}
        _measure(chunk, hand, sums, start)
        if progress is not None:
            progress(f"{data.split} labels", min(start + _CHUNK, count), count)
    yield from _rows_from(sums, arrays, hand, why_no_hand)
    if data.split == "evaluation" and "xyz" in arrays:
        yield from _check_zero_predictor(arrays, count == official and not synthetic)
    yield from _check_images(data, images, progress)


def _check_camera(K: NDArray[np.float64]) -> Iterator[CheckRow]:
    off = float(np.abs(K[:, :2, 2] - IMAGE_SIZE / 2).max())
    yield CheckRow(
        "principal points", f"({IMAGE_SIZE / 2:g}, {IMAGE_SIZE / 2:g}) px", f"off by at most {off:.2g} px", off < 1e-3
    )
    rest = np.concatenate([K[:, 0, 1], K[:, 1, 0], K[:, 2, 0], K[:, 2, 1], K[:, 2, 2] - 1])
    skew = float(np.abs(rest).max())
    ratio = K[:, 0, 0] / K[:, 1, 1]
    focal = np.percentile(K[:, 0, 0], [0, 50, 100])
    yield CheckRow(
        "cameras",
        "no skew, fx / fy within 0.99 to 1.01",
        f"skew {skew:.2g}, fx / fy {ratio.min():.4f} to {ratio.max():.4f}, fx {focal[0]:.0f} / {focal[1]:.0f} / "
        f"{focal[2]:.0f} px (least, median, most)",
        bool(skew < 1e-3 and ratio.min() > 0.99 and ratio.max() < 1.01),
    )


class _Sums:
    """Maxima, means and counts over chunks, by name."""

    def __init__(self) -> None:
        self.behind: list[tuple[int, str, float]] = []  # annotation, array, and the depth, m, of its nearest point
        self.largest: dict[str, float] = {}
        self.smallest: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self.count: dict[str, int] = {}

    def add(self, name: str, values: Floats) -> None:
        self.largest[name] = max(self.largest.get(name, -np.inf), float(values.max()))
        self.smallest[name] = min(self.smallest.get(name, np.inf), float(values.min()))
        self.total[name] = self.total.get(name, 0.0) + float(values.sum())
        self.count[name] = self.count.get(name, 0) + values.size

    def mean(self, name: str) -> float:
        return self.total[name] / self.count[name]


def _measure(chunk: dict[str, Floats], hand: HandArrays | None, sums: _Sums, start: int) -> None:
    """One chunk of annotations, the first of number `start`; float64 throughout."""
    K, xyz, verts = chunk["K"], chunk.get("xyz"), chunk.get("verts")
    for name, values in chunk.items():
        sums.add("not finite", (~np.isfinite(values)).astype(np.float64))
        if name in ("xyz", "verts"):
            sums.add("depth", values[..., 2])
            nearest = values[..., 2].min(axis=1)
            sums.behind += [(start + int(i), name, float(nearest[i])) for i in np.flatnonzero(nearest <= 0)]
    if xyz is not None:
        projected = xyz @ np.swapaxes(K, -1, -2)
        pixels = projected[..., :2] / projected[..., 2:]
        inside = ((pixels > -0.5) & (pixels < IMAGE_SIZE - 0.5)).all(axis=-1)
        sums.add("inside", np.asarray(inside, np.float64))
        if "scale" in chunk:
            bone = np.linalg.norm(xyz[:, _ROOT] - xyz[:, _ROOT + 1], axis=-1)
            sums.add("scale", np.abs(bone - chunk["scale"]))
    if hand is None or verts is None:
        return
    if xyz is not None:
        sums.add("joints", np.linalg.norm(hand.joints_of(verts) - xyz, axis=-1))
    if "mano" in chunk:
        decoded = _decoded_vertices(chunk["mano"], K, hand)
        sums.add("mano", np.linalg.norm(decoded - verts, axis=-1))


def _decoded_vertices(parameters: Floats, K: Floats, hand: HandArrays) -> Floats:
    """FreiHAND's (N, 1, 61) parameters -> (N, 778, 3) m in the camera, the way its authors decode them."""
    pose, betas, root_keypoint, scale = decode_mano(parameters, hand.hands_mean)
    posed = hand.shaped(betas).posed(pose)
    return posed.vertices - posed.joints[:, _ROOT, None] + root_from_mano(root_keypoint, scale, K)[:, None]


def _rows_from(
    sums: _Sums, arrays: dict[str, NDArray[Any]], hand: HandArrays | None, why_no_hand: str
) -> Iterator[CheckRow]:
    broken = round(sums.total["not finite"])
    yield CheckRow("values", "finite numbers", f"{broken} are not" if broken else "all finite", not broken)
    if "depth" in sums.count:
        nearest, farthest = sums.smallest["depth"], sums.largest["depth"]
        found = f"{nearest:.3f} to {farthest:.3f} m"
        if sums.behind:
            count, (annotation, name, depth) = len({which for which, _, _ in sums.behind}), sums.behind[0]
            found += f"; not in front: {count} annotations, such as {annotation:08d} ({name}, {depth:.3f} m)"
        yield CheckRow("depth", "in front of the camera, below 5 m", found, nearest > 0 and farthest < 5)
    if "inside" in sums.count:
        share = sums.mean("inside")
        yield CheckRow("joints in the image", "at least 95 %", f"{share:.2%}", share >= 0.95)
    if "scale" in sums.count:
        off = 1000 * sums.largest["scale"]
        yield CheckRow("scale = |joint 9 - joint 10|", "within 0.001 mm", f"off by at most {off:.2g} mm", off < 1e-3)
    if "verts" not in arrays:
        return
    wanted = "mean under 0.1 mm, none over 1 mm"
    if "joints" in sums.count:
        mean, worst = 1000 * sums.mean("joints"), 1000 * sums.largest["joints"]
        passed = mean < 0.1 and worst < 1
        yield CheckRow("joints regressed from vertices", wanted, f"mean {mean:.4f} mm, max {worst:.4f} mm", passed)
    elif hand is None:
        yield CheckRow("joints regressed from vertices", wanted, why_no_hand, None)
    wanted = "mean under 1 mm"
    if "mano" in sums.count:
        mean, worst = 1000 * sums.mean("mano"), 1000 * sums.largest["mano"]
        yield CheckRow(
            "MANO parameters, decoded again", wanted, f"vertices: mean {mean:.4f} mm, max {worst:.4f} mm", mean < 1
        )
    elif hand is None and "mano" in arrays:
        yield CheckRow("MANO parameters, decoded again", wanted, why_no_hand, None)


def _check_zero_predictor(arrays: dict[str, NDArray[Any]], official: bool) -> Iterator[CheckRow]:
    """What a prediction of all zeros scores: the published number can be had without any model."""
    for name, (published, published_aligned) in ZERO_SCORES_CM.items():
        if name not in arrays:
            continue
        plain, aligned = [], []
        for start in range(0, len(arrays[name]), _CHUNK):
            truth = np.asarray(arrays[name][start : start + _CHUNK], np.float64)
            plain.append(np.linalg.norm(truth, axis=-1).mean(axis=-1))
            aligned.append(pa_mean_error(truth, np.zeros_like(truth)))
        scores = 100 * np.concatenate(plain).mean(), 100 * np.concatenate(aligned).mean()
        yield CheckRow(
            f"all-zero prediction, {'joints' if name == 'xyz' else 'vertices'}",
            f"{published} / {published_aligned} cm (published)" if official else "(published for the real set only)",
            f"{scores[0]:.2f} / {scores[1]:.2f} cm",
            abs(scores[0] - published) < 0.006 and abs(scores[1] - published_aligned) < 0.006 if official else None,
        )


def _check_images(data: FreiHand, wanted: int | None, progress: Progress | None) -> Iterator[CheckRow]:
    """Decode pictures spread over all versions; and see that the labels lie where the masks say the hand is."""
    chosen = _spread(len(data), wanted)
    bad: list[str] = []
    on_mask: list[float] = []
    has_masks = "mask" in data.meta["splits"][data.split]["images"]
    for done, index in enumerate(chosen.tolist(), start=1):
        try:
            image = data.image(index)
            if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
                bad.append(f"{index:08d}.jpg is {image.shape}")
            if has_masks and "verts" in data.arrays:
                on_mask.append(_share_on_mask(data, index))
        except DataError as error:
            bad.append(str(error))
        if progress is not None:
            progress(f"{data.split} images", done, len(chosen))
    yield CheckRow(
        f"{len(chosen)} images decoded",
        f"{IMAGE_SIZE} x {IMAGE_SIZE} px",
        "; ".join(bad[:_SHOWN_PROBLEMS]) if bad else "all of them",
        not bad,
    )
    if on_mask:
        share = float(np.mean(on_mask))
        yield CheckRow("vertices on the mask", "at least half on average", f"{share:.1%}", share >= 0.5)


def _spread(count: int, wanted: int | None) -> NDArray[np.int64]:
    """Numbers of samples, evenly over `count`; None: all of them."""
    return np.unique(np.linspace(0, count - 1, count if wanted is None else max(wanted, 1)).round().astype(int))


def _share_on_mask(data: FreiHand, index: int) -> float:
    """Share of the projected vertices on the mask. Objects in front cut holes into masks: never all of them."""
    annotation = data.annotation_of(index)
    projected = data.arrays["verts"][annotation].astype(np.float64) @ data.arrays["K"][annotation].T
    pixels = np.round(projected[:, :2] / projected[:, 2:]).astype(int)
    inside = ((pixels >= 0) & (pixels < IMAGE_SIZE)).all(axis=1)
    if not inside.any():
        return 0.0
    return float(data.mask(index)[pixels[inside, 1], pixels[inside, 0]].mean())


# ---------------------------------------------------------------------------------------------------- photographs


def check_photos(data: LabelledPhotos, images: int | None = 200, progress: Progress | None = None) -> list[CheckRow]:
    """Every record is read and every label checked; `images` pictures, spread over the set, are decoded."""
    chosen = set(_spread(len(data), images).tolist())
    tally, hand = _PhotoTally(), _hand_of(data)
    for index in range(len(data)):
        labels, size = None, None
        try:
            record = data.record(index)
            labels = parse_labels(record, data.where(index))
            tally.decoded += index in chosen
            for picture in data.picture_paths(index):
                if not picture.is_file():
                    raise ImageError(f"No image at {picture}.")
            if index in chosen:
                height, width = read_image(data.path.parent / record["image"]).shape[:2]
                size = width, height
                if record.get("alpha") is not None:
                    read_alpha(data.path.parent / record["alpha"], size, data.where(index))
        except DataError as error:
            tally.problems.append(str(error))
        except ImageError as error:
            tally.image_problems.append(f"{data.where(index)}: {error}")
        if labels is not None:
            tally.add(labels, size, data.where(index))
            if hand is not None and index in chosen and (off := _decoded_off_mm(labels, hand)) is not None:
                tally.decoded_off_mm.append(off)
        if progress is not None:
            progress("samples", index + 1, len(data))
    return [*(CheckRow(*claim) for claim in data.claims()), *_rows_of_photos(tally, len(data))]


class _PhotoTally:
    """What is counted over the photographs of a set."""

    def __init__(self) -> None:
        self.problems: list[str] = []  # of records
        self.image_problems: list[str] = []
        self.decoded = 0  # pictures
        self.labels = dict.fromkeys(("box", "intrinsics", "keypoints", "joints", "vertices", "pose", "betas"), 0)
        self.left = 0  # hands
        self.absent = 0  # photographs without a hand
        self.croppable = 0  # the others with a box or keypoints
        self.spatial = 0  # with joints or vertices ...
        self.behind: list[str] = []  # ... and those of them that are not in front of the camera
        self.points = self.outside = 0  # known keypoints, of pictures that were decoded; those outside the picture
        self.disagreement_px: list[float] = []
        self.decoded_off_mm: list[float] = []  # of hands whose pose and shape were decoded

    def add(self, labels: PhotoLabels, size: tuple[int, int] | None, where: str) -> None:
        """`size`: width and height in px, of a picture that was decoded."""
        self.left += labels.handedness == "left"
        self.absent += not labels.hand.present
        for name in self.labels:
            known = getattr(labels.hand, f"{name}_known", None)
            self.labels[name] += getattr(labels, name) is not None if known is None else bool(known.any())
        self.croppable += bool(labels.hand.present) and labels.hand_box() is not None
        self.disagreement_px += _disagreement_px(labels)
        depths = _depths(labels)
        self.spatial += bool(depths)
        self.behind += [f"{where}: {name!r} at {depth:.3g} m" for name, depth in depths.items() if not depth > 0][:1]
        if size is None:
            return
        if labels.box is not None:
            x0, y0, x1, y1 = map(float, labels.box)
            if (problem := box_problem((x0, y0, x1, y1), size)) is not None:
                self.problems.append(f"{where}: 'box' {labels.box.tolist()} {problem}")
        if (seen := labels.keypoints_or_projection()) is not None:
            pixels = seen[0][seen[1]]
            self.points += len(pixels)
            self.outside += int(((pixels < -0.5) | (pixels > np.array(size) - 0.5)).any(axis=1).sum())


def _rows_of_photos(tally: _PhotoTally, count: int) -> Iterator[CheckRow]:
    yield CheckRow("samples", "known keys and sound values", _problems(tally.problems, count), not tally.problems)
    there = ", ".join(f"{name} {known}" for name, known in tally.labels.items() if known) or "no labels at all"
    hands, without = count - tally.absent, f"; {tally.absent} without a hand" if tally.absent else ""
    yield CheckRow("labels", "any subset", f"{there}; {tally.left} left hands of {hands}{without}", None)
    yield CheckRow(
        f"{tally.decoded} images decoded, {count} looked for", "photographs", _problems(tally.image_problems, count),
        not tally.image_problems,
    )  # fmt: skip
    all_croppable = tally.croppable == hands
    yield CheckRow(
        "a box or keypoints", "on every one, for crops around the hand",
        f"on {tally.croppable} of {hands}" + ("" if all_croppable else ": crop: frame will do, crop: box will not"),
        all_croppable or None,
    )  # fmt: skip
    if tally.spatial:
        found = f"all {tally.spatial}"
        if tally.behind:
            found = f"{len(tally.behind)} of {tally.spatial} are not, such as {tally.behind[0]}."
            found += " Are they relative to a joint?"
        yield CheckRow("joints and vertices", "in front of the camera (z > 0)", found, not tally.behind)
    if tally.points:
        share = 1 - tally.outside / tally.points
        yield CheckRow("known keypoints in the image", "at least 95 %", f"{share:.1%}", share >= 0.95)
    if tally.disagreement_px:
        median, worst = float(np.median(tally.disagreement_px)), float(np.max(tally.disagreement_px))
        yield CheckRow(
            "joints seen by the camera, against keypoints", "median under 3 px",
            f"median {median:.2f} px, max {worst:.1f} px", median < 3,
        )  # fmt: skip
    if tally.decoded_off_mm:
        mean, worst = float(np.mean(tally.decoded_off_mm)), float(np.max(tally.decoded_off_mm))
        yield CheckRow(
            "joints of pose and shape, against joints", f"mean under {_DECODED_OFF_MM:g} mm",
            f"mean {mean:.1f} mm, max {worst:.1f} mm, of {len(tally.decoded_off_mm)}", mean < _DECODED_OFF_MM,
        )  # fmt: skip


def _problems(problems: list[str], count: int) -> str:
    if not problems:
        return f"all {count} sound"
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return f"{len(problems)} of {count} are not: " + "; ".join(problems[:_SHOWN_PROBLEMS]) + more


def _depths(labels: PhotoLabels) -> dict[str, float]:
    """Of 3D labels that are known: z of the point that is nearest to the camera, m."""
    hand = labels.hand
    known = {"joints": (hand.joints_known, hand.joints), "vertices": (hand.vertices_known, hand.vertices)}
    return {name: float(points[:, 2].min()) for name, (there, points) in known.items() if there}


def _hand_of(data: LabelledPhotos) -> HandArrays | None:
    """The right hand that a set says its poses and shapes belong to, where it is here."""
    labelled = data.labelled_hand
    if labelled is None:
        return None
    try:
        hand = load_hand(labelled.name)
    except (AssetError, ConfigError):
        return None
    return hand if labelled.matches(hand) else None


def _decoded_off_mm(labels: PhotoLabels, hand: HandArrays) -> float | None:
    """How far the joints of labelled pose and shape are from the labelled ones, mean, their middles on each other."""
    known = labels.hand
    if not (known.joints_known and known.pose_known and known.betas_known):
        return None
    model = both_sides(hand)[labels.handedness]
    decoded = model.joints_of(model.shaped(known.betas).posed(known.pose).vertices)
    off = (decoded - decoded.mean(axis=0)) - (known.joints - known.joints.mean(axis=0))
    return 1000 * float(np.linalg.norm(off, axis=1).mean())


def _disagreement_px(labels: PhotoLabels) -> list[float]:
    """Distances between given keypoints and projected joints, where both are known."""
    hand = labels.hand
    if not hand.joints_known or labels.intrinsics is None:
        return []
    distance = np.linalg.norm(labels.intrinsics.project(hand.joints) - hand.keypoints, axis=1)[hand.keypoints_known]
    return np.nan_to_num(distance, nan=np.inf).tolist()
