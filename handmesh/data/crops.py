"""How a photograph and what is known about its hand get into a square crop: protocols with names.

Left hands are mirrored on the way into the crop (`CropTransform.mirror`): what comes out is a right hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.sample import HandSample, RawSample, without
from handmesh.errors import DataError
from handmesh.geometry.box import box_problem
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CropProtocol:
    """How the square around the hand is chosen. `FRAME`, `METRO` and `BOX` are the named ones."""

    name: str
    share: float | None  # of the image's longer side, around its middle; None: around the hand's box
    margin: float = 1.25  # crop side over the box's longer side
    from_test_labels: bool = False  # allowed to read the box from labels that scores are computed with

    @property
    def remark(self) -> str | None:
        """What every report of scores under this protocol has to say; None: nothing."""
        if not self.from_test_labels:
            return None
        return "Crops were made from the test set's own labels: not comparable with published scores."

    def crop(self, sample: RawSample) -> CropTransform:
        """The crop of a sample, without jitter. Raises DataError when it needs a box and none may be used."""
        mirror = sample.labels.handedness == Handedness.LEFT
        height, width = sample.image.shape[:2]
        if self.share is not None:
            return CropTransform(((width - 1) / 2, (height - 1) / 2), self.share * max(width, height), mirror=mirror)
        if sample.for_scoring and sample.labels.box is None and not self.from_test_labels:
            raise DataError(
                f"Protocol {self.name!r} would take the box of {sample.name} from the test set's own labels, which "
                f"makes scores incomparable. Use 'frame' or 'metro', or ask for it by name: {BOX_FROM_TEST_LABELS!r}."
            )
        if not sample.labels.hand.present:
            return CropTransform.whole_image(width, height)
        box = sample.labels.hand_box()
        if box is None:
            raise DataError(
                f"{sample.name} has no box, and no keypoints to make one from: protocol {self.name!r} needs one."
            )
        if sample.labels.box is not None:
            x0, y0, x1, y1 = map(float, box)
            if (problem := box_problem((x0, y0, x1, y1), (width, height))) is not None:
                raise DataError(f"{sample.name}: its box {box.tolist()} {problem}")
        return CropTransform.around_box(box, self.margin, mirror=mirror)


BOX_FROM_TEST_LABELS = "box-from-test-labels"
# The whole image: how FreiHAND's authors and most demos feed it.
FRAME = CropProtocol("frame", share=1.0)
# METRO's (and Mesh Graphormer's) data: the central 180 of 224 px, in training and in testing (0.9 * 200 px around the
# image's middle in their tsv_demo_freihand.py).
METRO = CropProtocol("metro", share=180 / 224)
# A square around the hand, as a detector would give it.
BOX = CropProtocol("box", share=None)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (FRAME, METRO, BOX, CropProtocol(BOX_FROM_TEST_LABELS, share=None, from_test_labels=True))
}


def crop_protocol(name: str) -> CropProtocol:
    """Raises DataError for a name that is none of `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise DataError(f"Crop protocol {name!r}: wanted one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def crop_sample(sample: RawSample, crop: CropTransform, resolution: int) -> HandSample[NDArray[Any]]:
    """The pixels and labels of `sample` in `crop`; black beyond the photograph.

    A left hand has to be mirrored, a right one not. In a crop that has it the other way round the hand's side is taken
    for the other: it shows a left hand, and of the labels only keypoints are left.

    With known intrinsics, 3D labels are turned to a camera that faces the crop's centre: what a hand looks like in an
    off-centre crop depends on where the camera would have to look. For a crop around FreiHAND's principal point that
    turn is nothing but the half pixel between it and the image's middle.
    """
    labels, hand = sample.labels, sample.labels.hand
    if crop.mirror != (labels.handedness == Handedness.LEFT):  # no right hand's pose is true of what is seen there
        hand = without(hand, "joints", "vertices", "pose", "betas")
    image = crop.warp(np.ascontiguousarray(sample.image), resolution, cv2.BORDER_CONSTANT)
    virtual_from_cam = (
        np.eye(3) if labels.intrinsics is None else labels.intrinsics.virtual_camera_rotation(crop.center)
    )
    if (seen := labels.keypoints_or_projection()) is not None:
        points, known = seen
        points = np.where(known[:, None], crop.to_ndc(np.where(known[:, None], points, 0)), 0)
        hand = hand._replace(keypoints=points, keypoints_known=known)
    if hand.pose_known:
        hand = hand._replace(pose=crop.pose_to_crop(np.concatenate([virtual_from_cam @ hand.pose[:1], hand.pose[1:]])))
    if hand.joints_known:
        hand = hand._replace(joints=crop.vectors_to_crop(hand.joints @ virtual_from_cam.T))
    if hand.vertices_known:
        hand = hand._replace(vertices=crop.vectors_to_crop(hand.vertices @ virtual_from_cam.T))
    hand = hand._replace(right=np.asarray(hand.right != crop.mirror))
    return HandSample(image, hand.map(lambda value: value if value.dtype == bool else value.astype(np.float32)))
