"""One hand in one photograph, as a value: what it is, where it is, and what can be made of it."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.detect import Box, Source
from handmesh.draw.colors import HAND_COLORS
from handmesh.errors import ConfigError, ExportError, ImageError
from handmesh.files.image import ImageSource, encode_image, read_image
from handmesh.files.mesh import MESH_SUFFIXES, MeshHand, notebook_html, write_hands
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera, hand_origin_cam
from handmesh.geometry.crop import CropTransform
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import JOINT_NAMES, MANO_JOINT_NAMES, Handedness, joint_index
from handmesh.hand.anatomy import JointAngles, angles_from_pose
from handmesh.predict import conversions
from handmesh.system.atomic import write_atomically

if TYPE_CHECKING:
    from trimesh import Trimesh

    from handmesh.draw.render import ImageMesh

Floats = NDArray[np.float32]
_JOINT_RADIUS = 0.010  # metres: how far a joint's doubt spreads over the skin
_MOST_PALE = 0.8  # share of white ...
_FULL_DOUBT = 0.25  # ... of a joint whose score is so far below one half
HandednessSource = Literal["given", "found", "assumed"]  # assumed: right, by a network that cannot tell
AnyHand = TypeVar("AnyHand")


@dataclass(frozen=True, eq=False, repr=False)
class HandPrediction:
    """One hand in one photograph. numpy, metres; nothing is mirrored or turned any more.

    `vertices` and `joints` are in the hand frame: axes of a camera that faces the hand (x right, y down, z forward),
    origin of the hand model of that handedness. They are what that hand model gives for `pose` and `betas`.
    `camera` draws them exactly: `crop.to_image(camera.project(points))`.
    """

    handedness: Handedness
    handedness_source: HandednessSource
    handedness_score: float  # 0..1: that this is the side; 1 if given
    # 0..1: that there is a hand and its joints are drawn within 0.15 of its size; from 0.5 on lower, not below 0.5, the
    # likelier a finger is lost. Of a network without that head: how well the last two passes agree in the image (1 with
    # a single pass), which is no probability.
    score: float
    joint_scores: Floats | None  # (21,) 0..1: that the joint is drawn within 0.06 of the hand's size; None: not known
    box: Box  # x0, y0, x1, y1 in pixels, around the keypoints
    crop: CropTransform  # the square that `camera` belongs to
    camera: WeakPerspectiveCamera
    pose: Floats  # (16, 3, 3) parent-relative rotations of the hand model of this handedness
    betas: Floats  # (10,)
    vertices: Floats  # (778, 3)
    joints: Floats  # (21, 3)
    faces: NDArray[np.int32]  # (1538, 3), counter-clockwise seen from outside
    source: Source  # how the box was found
    intrinsics: Intrinsics  # of the full photograph, as well as it is known: `intrinsics.source` says how
    flexion_axes: Floats  # (16, 3, 3) of the hand model: what `joint_angles` are about; `anatomy.flexion_axes`

    def __repr__(self) -> str:
        box = ", ".join(f"{edge:.0f}" for edge in self.box)
        return (
            f"<HandPrediction {self.handedness} ({self.handedness_source}), score {self.score:.2f}, "
            f"box ({box}) px, {self.source}>"
        )

    def keypoints_image(self) -> Floats:
        """(21, 2) px: the joints, drawn."""
        return self.crop.to_image(self.camera.project(self.joints)).astype(np.float32)

    def joint(self, name: str) -> Floats:
        """(3,) metres, hand frame: the joint of a name in `JOINT_NAMES`, such as "index_tip". Raises ConfigError."""
        return self.joints[joint_index(name)]

    def distance(self, first: str, second: str) -> float:
        """Metres between two joints by name: `hand.distance("thumb_tip", "index_tip")` is how far a pinch is open.

        A photograph says little of a hand's true size: of two people's hands, compare it to a length of the same hand,
        such as `hand.distance("wrist", "middle_mcp")`. Raises ConfigError for another name than `JOINT_NAMES` has.
        """
        return float(np.linalg.norm(self.joint(first) - self.joint(second)))

    def joint_angles(self) -> dict[str, JointAngles]:
        """Flexion, abduction and twist of the 15 joints that bend, radians from the flat rest pose, by name.

        `hand.joint_angles()["index_pip"].flexion`. In the order of `JOINT_NAMES`. What is measured:
        `anatomy.angles_from_pose`.
        """
        angles = angles_from_pose(self.flexion_axes, self.pose)
        bending = (name for name in JOINT_NAMES if name in MANO_JOINT_NAMES[1:])
        return {name: JointAngles(*angles[MANO_JOINT_NAMES.index(name)].tolist()) for name in bending}

    def vertices_image(self) -> Floats:
        """(778, 3): x and y in pixels, and depth in pixels of the same scale."""
        xy = self.crop.to_image(self.camera.project(self.vertices))
        return np.column_stack([xy, self.vertices[:, 2] * self._px_per_metre()]).astype(np.float32)

    def _px_per_metre(self) -> float:
        return float(self.camera.scale) * self.crop.size / 2

    def origin_cam(self, intrinsics: Intrinsics | ArrayLike | None = None) -> Floats:
        """(3,) metres: where the hand frame's origin lies in the camera frame of the full image."""
        known = self._known(intrinsics)
        depth = float(self.vertices[:, 2].mean())
        return hand_origin_cam(self.camera, self.crop, known, depth, self.cam_from_hand_axes(known)).astype(np.float32)

    def vertices_cam(self, intrinsics: Intrinsics | ArrayLike | None = None) -> Floats:
        """(778, 3) metres in the camera frame of the full image. As good as the camera's focal length is known.

        `intrinsics`: an `Intrinsics` or K, instead of the photo's.
        """
        return self._to_cam(self.vertices, intrinsics)

    def joints_cam(self, intrinsics: Intrinsics | ArrayLike | None = None) -> Floats:
        """(21, 3) metres in the camera frame of the full image."""
        return self._to_cam(self.joints, intrinsics)

    def cam_from_hand_axes(self, intrinsics: Intrinsics | ArrayLike | None = None) -> NDArray[np.float64]:
        """(3, 3): the network sees a crop as a camera that faces it would; this turns that camera to the real one."""
        return self._known(intrinsics).virtual_camera_rotation(self.crop.center).T

    def _known(self, intrinsics: Intrinsics | ArrayLike | None) -> Intrinsics:
        return self.intrinsics if intrinsics is None else Intrinsics.of(intrinsics)

    def _to_cam(self, points: Floats, intrinsics: Intrinsics | ArrayLike | None) -> Floats:
        known = self._known(intrinsics)
        return (points @ self.cam_from_hand_axes(known).T + self.origin_cam(known)).astype(np.float32)

    @cached_property
    def mesh(self) -> ImageMesh:
        """Ready to draw."""
        from handmesh.draw.render import ImageMesh  # on first use: its compiler takes a third of a cold start

        normals = vertex_normals(self.vertices, self.faces)
        return ImageMesh(self.vertices_image(), self.faces, normals, self._colors())

    def _colors(self) -> NDArray[np.floating[Any]]:
        """(3,) RGB; (778, 3) where some joints are more likely misplaced than not: paler around those."""
        color = np.array(HAND_COLORS[self.handedness], np.float32)
        if self.joint_scores is None or not (doubt := np.clip((0.5 - self.joint_scores) / _FULL_DOUBT, 0, 1)).any():
            return color
        distances = np.linalg.norm(self.vertices[:, None] - self.joints, axis=-1)
        nearness = np.exp(-((distances / _JOINT_RADIUS) ** 2) / 2) + 1e-12
        paleness = _MOST_PALE * (nearness @ doubt) / nearness.sum(axis=1)
        return color + paleness[:, None] * (255 - color)

    def overlay(self, image: ImageSource) -> NDArray[np.uint8]:
        """The mesh drawn over a copy of its photograph, (H, W, 3) uint8 RGB."""
        return overlay_hands(image, [self])

    def save(self, path: str | os.PathLike[str], image: ImageSource | None = None) -> None:
        """Write by suffix: .glb .obj .ply .stl .npz .json .html, or .png, .jpg (overlays; need `image`, the photo)."""
        save_hands(path, [self], image)

    def to_trimesh(self) -> Trimesh:
        """A trimesh.Trimesh in the camera frame, y up: for its tools and its other formats."""
        return as_mesh_hand(self).to_trimesh()

    def to_smplx(self, hands_mean: ArrayLike | None = None) -> dict[str, Any]:
        """Keyword arguments for smplx, numpy with a leading batch dimension of one; back: `handmesh.from_smplx`.

        `MANOLayer` takes "global_orient", "hand_pose" (rotation matrices) and "betas"; `MANO` built with
        `use_pca=False, flat_hand_mean=True` takes the same names from "axis_angle". Both with `is_rhand` as given. With
        `hands_mean`, the (45,) mean pose of that hand's model, "axis_angle" is for `flat_hand_mean=False`.
        """
        return conversions.to_smplx(self.handedness, self.pose, self.betas, hands_mean)

    def to_mediapipe(self, size: tuple[int, int]) -> conversions.MediaPipeHand:
        """As MediaPipe's hand landmarker answers of a photo of `size` (width, height) px; back: `from_mediapipe`.

        `hand_landmarks` (21, 3) over the photo's sides, `hand_world_landmarks` (21, 3) metres, `handedness` "Left" or
        "Right" and its score. Our joints, in MediaPipe's order, which is the same. Raises ConfigError for no size.
        """
        points = np.column_stack([self.keypoints_image(), self.joints[:, 2] * self._px_per_metre()])
        return conversions.to_mediapipe(self.handedness, self.handedness_score, points, self.joints, size)

    def to_openpose(self) -> dict[str, list[float]]:
        """As one of the `people` in OpenPose's JSON: x, y in pixels and a score of each joint; back: `from_openpose`.

        The file of a photograph is `{"version": 1.3, "people": [hand.to_openpose() for hand in hands]}`.
        """
        scores = np.full(len(JOINT_NAMES), self.score) if self.joint_scores is None else self.joint_scores
        return conversions.to_openpose(self.handedness, self.keypoints_image(), scores)

    def to_pytorch3d(self, size: tuple[int, int]) -> tuple[Any, Any]:
        """PyTorch3D's `Meshes` in the camera frame, and the `PerspectiveCameras` of a photo of `size` (width, height).

        Raises ConfigError where PyTorch3D is not installed.
        """
        return conversions.to_pytorch3d(self.vertices_cam(), self.faces, self.intrinsics, size)

    def show(self) -> None:
        """The hand in 3D, to be turned: in the notebook, or else in the browser."""
        show_hands([self])

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return notebook_html([as_mesh_hand(self)])


def overlay_hands(
    image: ImageSource, hands: HandPrediction | Iterable[HandPrediction], *, skeleton: bool = False
) -> NDArray[np.uint8]:
    """All meshes, or all skeletons, drawn over a copy of their photograph: (H, W, 3) uint8 RGB. One hand will do, too.

    `image`: what `read_image` takes, so the array or the path that the predictor was given. Near hands hide far ones.
    Where joints are more likely misplaced than not, meshes are paler, and joints of skeletons are rings. Raises
    ImageError, ConfigError for what is no hand.
    """
    from handmesh.draw.render import overlay_meshes
    from handmesh.draw.skeleton import draw_skeleton

    listed = _listed(hands, HandPrediction)
    photo = read_image(image)
    if not skeleton:
        return overlay_meshes(photo, drawable_meshes(listed))
    drawn = photo.copy()
    for hand in sorted(listed, key=_distance, reverse=True):
        unsure = None if hand.joint_scores is None else hand.joint_scores < 0.5
        drawn = draw_skeleton(drawn, hand.keypoints_image(), occluded=unsure)
    return drawn


def drawable_meshes(hands: Sequence[HandPrediction]) -> list[ImageMesh]:
    """The meshes of a photograph's hands for `draw.render`, with depths in metres, as far apart as files place them."""
    distances = [_distance(hand) for hand in hands]
    nearest = min(filter(math.isfinite, distances), default=0.0)  # small numbers have more digits
    meshes = []
    for hand, distance in zip(hands, distances, strict=True):
        depth = hand.vertices[:, 2] + (distance - nearest)
        points = np.column_stack([hand.mesh.vertices_image[:, :2], depth]).astype(np.float32)
        meshes.append(replace(hand.mesh, vertices_image=points))
    return meshes


def _distance(hand: HandPrediction) -> float:
    """Metres from the camera to the origin of the hand's frame, along that frame's z."""
    return float(hand.cam_from_hand_axes()[:, 2] @ hand.origin_cam())


def save_hands(
    path: str | os.PathLike[str],
    hands: HandPrediction | MeshHand | Iterable[HandPrediction | MeshHand],
    image: ImageSource | None = None,
) -> None:
    """Write all hands of a photograph, or one, into one file, by suffix: those that `HandPrediction.save` has.

    Hands that nobody predicted come as `MeshHand`; they cannot be drawn over a photograph. Raises ExportError,
    ImageError for a picture without its photograph, ConfigError for what is no hand.
    """
    target = Path(path)
    listed: list[HandPrediction | MeshHand] = _listed(hands, (HandPrediction, MeshHand))
    if target.suffix.lower() in (".png", ".jpg", ".jpeg"):
        if image is None:
            raise ImageError(f"{target} is a picture: give the photograph that the hands are drawn over (image=...).")
        predicted = [hand for hand in listed if isinstance(hand, HandPrediction)]
        if len(predicted) < len(listed):
            raise ExportError(f"{target} is a picture: a MeshHand has no place in one. Write a mesh, such as .glb.")
        write_atomically(target, encode_image(overlay_hands(image, predicted), target.suffix))
        return
    if target.suffix.lower() not in MESH_SUFFIXES:
        raise ExportError(
            f"Cannot write hands as {repr(target.suffix) if target.suffix else 'a file without suffix'}; wanted one of "
            f"{', '.join(MESH_SUFFIXES)}, or a picture: .png, .jpg."
        )
    write_hands(target, _mesh_hands(listed))


def _listed(hands: AnyHand | Iterable[AnyHand], kinds: type[AnyHand] | tuple[type[AnyHand], ...]) -> list[AnyHand]:
    """One hand is a list of one."""
    listed = list(hands) if isinstance(hands, Iterable) else [hands]
    for hand in listed:
        if not isinstance(hand, kinds):
            raise ConfigError(
                f"{type(hand).__name__} is no hand: wanted the hands of one photo, as a predictor gives them, or one "
                "of them. Of `follow_video` those are hands.values()."
            )
    return listed


def _mesh_hands(hands: Sequence[HandPrediction | MeshHand]) -> list[MeshHand]:
    return [hand if isinstance(hand, MeshHand) else as_mesh_hand(hand, index) for index, hand in enumerate(hands)]


def show_hands(hands: HandPrediction | MeshHand | Iterable[HandPrediction | MeshHand]) -> None:
    """Hands in 3D, placed to each other, to be turned: in the notebook that this runs in, or else in the browser.

    Raises ConfigError for what is no hand.
    """
    meshes = _mesh_hands(_listed(hands, (HandPrediction, MeshHand)))
    # A terminal's IPython has no kernel, and no place for a page.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and getattr(shell, "kernel", None) is not None:
        from IPython.display import HTML, display

        display(HTML(notebook_html(meshes)))
        return
    import webbrowser  # on first use: it takes longer to import than a hand to draw

    page = Path(tempfile.mkdtemp(prefix="handmesh-")) / "hands.html"
    write_hands(page, meshes)
    if not webbrowser.open(page.as_uri()):
        raise ExportError(f"There is no browser to show hands in. The page that it would show is {page}.")


def as_mesh_hand(hand: HandPrediction, index: int = 0) -> MeshHand:
    """What the mesh writers take."""
    fields: Mapping[str, Any] = {
        "handedness_source": hand.handedness_source,
        "handedness_score": hand.handedness_score,
        "score": hand.score,
        **({} if hand.joint_scores is None else {"joint_scores": hand.joint_scores}),
        "source": hand.source,
        "box_px": np.asarray(hand.box),
        "keypoints_px": hand.keypoints_image(),
        "camera_scale_ndc_per_m": float(hand.camera.scale),
        "camera_translation_m": hand.camera.translation,
        "crop_center_px": np.asarray(hand.crop.center),
        "crop_size_px": hand.crop.size,
        "pose": hand.pose,
        "betas": hand.betas,
        "intrinsics_px": hand.intrinsics.matrix,
        "intrinsics_source": hand.intrinsics.source,
    }
    return MeshHand(
        vertices=hand.vertices,
        faces=hand.faces,
        joints=hand.joints,
        handedness=hand.handedness,
        name=f"{hand.handedness}_hand_{index}",
        translation=hand.origin_cam(),
        cam_from_hand_axes=hand.cam_from_hand_axes(),
        color=HAND_COLORS[hand.handedness],
        extra=fields,
    )
