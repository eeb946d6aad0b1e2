"""Stand-ins for published data sets: their exact structure, file by file, around hands that are known.

What each writer knows of a set is taken from that set's own documentation and tools, named there; the hands are ours.
"""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import JOINTS_FROM_MANO, HandArrays, Handedness, builtin_hand

SIZE = (320, 240)  # width and height of every photograph
K = np.array([[400.0, 0, 157.5], [0, 402.0, 121.0], [0, 0, 1]])


@dataclass(frozen=True, eq=False)
class KnownHand:
    """A hand in front of the camera `K`; metres and pixels, our conventions."""

    side: Handedness
    vectors: NDArray[np.float64]  # (16, 3) rotation vectors, the hand's orientation first, identity = flat
    betas: NDArray[np.float64]  # (10,)
    translation: NDArray[np.float64]  # (3,) m, of the posed model's origin
    joints: NDArray[np.float64]  # (21, 3) m
    vertices: NDArray[np.float64]  # (778, 3) m
    chain: NDArray[np.float64]  # (16, 3) m, joints of the kinematic chain in MANO's order

    def chain_joints(self, tips: tuple[int, ...]) -> NDArray[np.float64]:
        """(21, 3) m in our order: the chain's joints, and as tips, thumb first, these vertices."""
        return np.concatenate([self.chain, self.vertices[list(tips)]])[list(JOINTS_FROM_MANO)]

    @property
    def keypoints(self) -> NDArray[np.float64]:
        """(21, 2) px."""
        projected = self.joints @ K.T
        return projected[:, :2] / projected[:, 2:]

    @property
    def box(self) -> NDArray[np.float64]:
        """(4,) px, the smallest around the keypoints."""
        return np.concatenate([self.keypoints.min(axis=0), self.keypoints.max(axis=0)])


def known_hands(count: int, hand: HandArrays | None = None, sides: str = "rl", seed: int = 0) -> list[KnownHand]:
    """Hands of random poses and shapes that lie inside the photograph, the sides in turns."""
    rng, right = np.random.default_rng(seed), builtin_hand() if hand is None else hand
    found = []
    for index in range(count):
        side = {"r": Handedness.RIGHT, "l": Handedness.LEFT}[sides[index % len(sides)]]
        model = right if side == Handedness.RIGHT else right.mirrored()
        vectors = rng.normal(0, 0.2, (16, 3))
        vectors[0] = rng.normal(0, 1.0, 3)
        betas = rng.normal(0, 0.7, 10)
        shaped = model.shaped(betas)
        posed = shaped.posed(matrix_from_vector(vectors))
        middle = rng.uniform((-0.05, -0.03, 0.55), (0.05, 0.03, 0.75))
        translation = middle - posed.vertices.mean(axis=0)
        vertices = posed.vertices + translation
        rest = shaped.joints
        # The chain's joints, walked down the tree: independent of the skinning.
        rotations, places = matrix_from_vector(vectors), np.zeros((16, 3))
        world = [rotations[0]]
        places[0] = rest[0]
        for joint in range(1, 16):
            parent = int(model.parents[joint])
            places[joint] = places[parent] + world[parent] @ (rest[joint] - rest[parent])
            world.append(world[parent] @ rotations[joint])
        found.append(
            KnownHand(side, vectors, betas, translation, model.joints_of(vertices), vertices, places + translation)
        )
    return found


def write_photo(path: Path, seed: int = 0) -> None:
    """Noise of `SIZE` in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_coco_wholebody(root: Path, hands: list[KnownHand]) -> Path:
    """data_format.md and evaluation/example_gt.json of github.com/jin-s13/COCO-WholeBody: a person for each hand.

    The first person has the hand of the other side, too small to use; a last one has no valid hand.
    """
    images, annotations = [], []
    nothing = {"box": [0.0] * 4, "kpts": [0.0] * 63, "valid": False}
    for index, hand in enumerate([*hands, None]):
        name = f"{index + 1:012d}.jpg"
        write_photo(root / "val2017" / name, index)
        images.append({"license": 4, "file_name": name, "height": SIZE[1], "width": SIZE[0], "id": 1000 + index})
        parts = {side: dict(nothing) for side in ("left", "right")}
        if hand is not None:
            x0, y0, x1, y1 = hand.box.tolist()
            points = np.column_stack([hand.keypoints, np.ones(21)])
            parts[str(hand.side)] = {"box": [x0, y0, x1 - x0, y1 - y0], "kpts": points.ravel().tolist(), "valid": True}
            if index == 0:
                tiny = [50.0, 50.0, 1.0, 51.0, 53.0, 1.0] + [0.0] * 57
                other = "left" if hand.side == Handedness.RIGHT else "right"
                parts[other] = {"box": [50.0, 50.0, 1.0, 3.0], "kpts": tiny, "valid": True}
        person = {f"{side}hand_{key}": value for side, part in parts.items() for key, value in part.items()}
        person |= {"image_id": 1000 + index, "category_id": 1, "id": 7000 + index, "iscrowd": 0, "num_keypoints": 0}
        person |= {"keypoints": [0] * 51, "bbox": [0.0] * 4, "segmentation": [], "area": 1.0}
        person |= {"face_box": [0.0] * 4, "face_kpts": [0.0] * 204, "face_valid": False}
        annotations.append(person | {"foot_kpts": [0.0] * 18, "foot_valid": False})
    path = root / "annotations" / "coco_wholebody_val_v1.0.json"
    _write_json(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": []})
    return path


def write_hint(root: Path, hands: list[KnownHand], hidden: NDArray[np.bool_]) -> Path:
    """README.md and visualize_HInt/ of github.com/ddshan/hint. `hidden` (N, 21)."""
    folder = root / "HInt_annotation_partial" / "VAL_newdays_img"
    for index, hand in enumerate(hands):
        name = f"ND_{index:04d}_frame{300 * index:06d}_{'r' if hand.side == Handedness.RIGHT else 'l'}"
        write_photo(folder / f"{name}.jpg", index)
        occlusion = hidden[index].astype(float).tolist()
        labels = {"bbox": [hand.box.tolist()], "keypoints": hand.keypoints.tolist(), "occlusion": occlusion}
        _write_json(folder / f"{name}.json", [labels])
    return folder


def projected(points: NDArray[np.float64], camera: NDArray[np.float64] = K) -> NDArray[np.float64]:
    """(N, 3) m -> (N, 2) px."""
    seen = points @ camera.T
    return seen[:, :2] / seen[:, 2:]


MANOPTH_TIPS = (745, 317, 444, 556, 673)  # thumb, index, middle, ring, pinky


def write_dexycb(root: Path, hands: list[KnownHand], models: dict[Handedness, HandArrays]) -> dict[str, KnownHand]:
    """dex_ycb_toolkit/dex_ycb.py and examples/visualize_pose.py of github.com/NVlabs/dex-ycb-toolkit.

    Ten subjects with a hundred sequences; those of split s0_val have one or two frames of each camera, the second
    without a hand. -> image, relative to the root, and the hand in it.
    """
    photo = root / "photo.jpg"
    write_photo(photo)
    cameras = ["836212060125", "839512060362", "840412060917", "841412060263"]
    cameras += ["932122060857", "932122060861", "932122061900", "932122062010"]
    color = {"fx": K[0, 0].item(), "fy": K[1, 1].item(), "ppx": K[0, 2].item(), "ppy": K[1, 2].item()}
    for serial in cameras:
        _write_yaml(root / f"calibration/intrinsics/{serial}_640x480.yml", {"color": color, "depth": color})
    subjects = [f"2020{month:02d}{day:02d}-{name}" for month, day, name in ((7, 9, "a"), (8, 13, "b"), (8, 20, "c"))]
    subjects += [f"2020{9 + number // 4:02d}{number + 3:02d}-other{number}" for number in range(7)]
    found, number = {}, 0
    for subject_number, subject in enumerate(sorted(subjects)):
        for sequence in range(100):
            folder = f"{subject}/{subject[:8]}_{100000 + sequence}"
            (root / folder).mkdir(parents=True)
            if subject_number > 1 or sequence % 5 != 4:
                continue
            hand = hands[number % len(hands)]
            number += 1
            frames = 1 if number % 2 else 2
            calibration = f"{subject[:8]}_{hand.side}_{number}"
            meta = {"num_frames": frames, "mano_sides": [str(hand.side)], "mano_calib": [calibration]}
            _write_yaml(root / folder / "meta.yml", meta | {"serials": cameras, "ycb_ids": [2], "ycb_grasp_ind": 0})
            _write_yaml(root / f"calibration/mano_{calibration}/mano.yml", {"betas": hand.betas.tolist()})
            for serial in cameras:
                place = root / folder / serial
                place.mkdir()
                for frame in range(frames):
                    os.link(photo, place / f"color_{frame:06d}.jpg")
                    np.savez(place / f"labels_{frame:06d}.npz", **_dexycb_labels(hand, models[hand.side], frame > 0))
                found[f"{folder}/{serial}/color_000000.jpg"] = hand
    photo.unlink()
    return found


def _dexycb_labels(hand: KnownHand, model: HandArrays, absent: bool) -> dict[str, NDArray[Any]]:
    joints = hand.chain_joints(MANOPTH_TIPS)
    components = np.linalg.solve(model.hands_components.T, hand.vectors[1:].ravel() - model.hands_mean)
    pose = np.concatenate([hand.vectors[0], components, hand.translation])
    labels = {"joint_3d": joints[None], "joint_2d": projected(joints)[None], "pose_m": pose[None]}
    labels = {name: value.astype(np.float32) for name, value in labels.items()}
    if absent:
        labels = {name: np.full_like(value, 0 if name == "pose_m" else -1) for name, value in labels.items()}
    return labels | {"seg": np.zeros((2, 2), np.uint8), "pose_y": np.zeros((1, 3, 4), np.float32)}


def write_interhand(root: Path, hands: list[KnownHand], mean: NDArray[np.float64], invalid: int) -> Path:
    """The homepage's description, data/InterHand2.6M/dataset.py and tool/MANO_world_to_camera/convert.py of
    github.com/facebookresearch/InterHand2.6M: `hands` are, in turns, right and left ones. The first two are in one
    photograph, each other one in its own; joint number `invalid` of the last hand, in our order, is not valid.
    """
    split, capture, camera = "val", "0", "400053"
    rotation = matrix_from_vector(np.array([0.3, -2.0, 0.4]))
    position = np.array([812.0, -455.0, 1203.0])  # mm
    order = [4 * finger + joint for finger in range(5) for joint in (4, 3, 2, 1)] + [0]  # ours, in their places
    groups = [hands[:2], *([hand] for hand in hands[2:])]
    images, annotations, joints, fits = [], [], {}, {}
    for index, group in enumerate(groups):
        name, frame = f"Capture{capture}/ROM/cam{camera}/image{100 + index}.jpg", str(100 + index)
        write_photo(root / "images" / split / name, index)
        images.append({"id": 50 + index, "file_name": name, "width": SIZE[0], "height": SIZE[1], "capture": 0})
        images[-1] |= {"subject": 3, "seq_name": "ROM", "camera": camera, "frame_idx": 100 + index}
        world, valid = np.ones((42, 3)), np.zeros((42, 1))
        fits[frame] = {"right": None, "left": None}
        for hand in group:
            first, model_mean = (0, mean) if hand.side == Handedness.RIGHT else (21, mean * np.tile([1, -1, -1], 15))
            world[first : first + 21] = (1000 * hand.joints[order]) @ rotation + position
            valid[first : first + 21] = 1
            if hand is hands[-1]:
                valid[first + order.index(invalid)] = 0
            orientation = vector_from_matrix(rotation.T @ matrix_from_vector(hand.vectors[0]))
            pose = np.concatenate([orientation, hand.vectors[1:].ravel() - model_mean])
            fits[frame][str(hand.side)] = {"pose": pose.tolist(), "shape": hand.betas.tolist(), "trans": [0.0] * 3}
        kind = "interacting" if len(group) == 2 else str(group[0].side)
        joints[frame] = {"world_coord": world.tolist(), "joint_valid": valid.tolist(), "hand_type": kind}
        annotations.append({"id": 900 + index, "image_id": 50 + index, "bbox": [10.0, 10.0, 200.0, 200.0]})
        annotations[-1] |= {"joint_valid": valid.ravel().tolist(), "hand_type": kind, "hand_type_valid": 1}
    cameras = {"campos": position, "camrot": rotation, "focal": np.diag(K)[:2], "princpt": K[:2, 2]}
    folder = root / "annotations" / split
    data = {"images": images, "annotations": annotations}
    _write_json(folder / f"InterHand2.6M_{split}_data.json", data)
    camera_file = {capture: {key: {camera: value.tolist()} for key, value in cameras.items()}}
    _write_json(folder / f"InterHand2.6M_{split}_camera.json", camera_file)
    _write_json(folder / f"InterHand2.6M_{split}_joint_3d.json", {capture: joints})
    _write_json(folder / f"InterHand2.6M_{split}_MANO_NeuralAnnot.json", {capture: fits})
    return folder / f"InterHand2.6M_{split}_data.json"


def write_hanco(root: Path, hands: list[KnownHand], mean: NDArray[np.float64]) -> dict[str, tuple[KnownHand, int]]:
    """show_dataset.py and utils/mano_utils.py of github.com/lmb-freiburg/contra-hand: a frame for each hand, in turns
    in sequence 3, with the green screen and looked at, and in sequence 1517, without; each begins with a frame without
    a fit. -> image in rgb/, relative to the root; the hand, and by how many hundredths of a radian the camera turned.
    """
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = matrix_from_vector(np.array([0.3, -2.0, 0.4]))
    world_from_cam[:3, 3] = (0.2, -0.1, 0.5)
    turns = np.tile(np.eye(4), (8, 1, 1))
    turns[:, :3, :3] = [matrix_from_vector(np.array([0, 0, 0.01 * camera])) for camera in range(8)]
    meta: dict[str, list[list[Any]]] = {
        name: [[] for _ in range(1518)] for name in ("is_train", "subject_id", "is_valid", "object_id", "has_fit")
    }
    found = {}
    for sequence, of in ((3, hands[::2]), (1517, hands[1::2])):
        train, count = sequence == 3, len(of) + 1
        meta["is_train"][sequence], meta["is_valid"][sequence] = [train] * count, [False] + [train] * len(of)
        meta["subject_id"][sequence], meta["object_id"][sequence] = [7] * count, [None] * count
        meta["has_fit"][sequence] = [False] + [True] * len(of)
        for frame, hand in enumerate([None, *of]):
            place = f"{sequence:04d}/{frame:08d}.json"
            calibration = {"K": [K.tolist()] * 8, "M": (turns @ np.linalg.inv(world_from_cam)).tolist()}
            _write_json(root / "calib" / place, calibration)
            for camera in range(8):
                view = f"{sequence:04d}/cam{camera}/{frame:08d}"
                for folder in ("rgb", "rgb_merged") if train else ("rgb",):
                    write_photo(root / folder / f"{view}.jpg", camera)
                if hand is None:
                    continue
                joints = hand.joints @ turns[camera, :3, :3].T
                orientation = vector_from_matrix(turns[camera, :3, :3] @ matrix_from_vector(hand.vectors[0]))
                root_and_scale = [*projected(joints[9:10])[0], (K[0, 0] + K[1, 1]) / 2 / joints[9, 2]]
                numbers = [*orientation, *(hand.vectors[1:].ravel() - mean), *hand.betas, *root_and_scale]
                _write_json(root / "shape" / f"{view}.json", numbers)
                found[f"rgb/{view}.jpg"] = (hand, camera)
            if hand is not None:
                world = hand.joints @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
                _write_json(root / "xyz" / place, world.tolist())
    _write_json(root / "meta.json", meta)
    return found


HO3D_TIPS = (744, 333, 444, 555, 672)  # thumb, index, middle, ring, pinky


def write_ho3d(root: Path, hands: list[KnownHand], suffix: str, protocol: int) -> Path:
    """vis_HO3D.py, utils/vis_utils.py, pred.py and eval.py of github.com/shreyashampali/ho3d: one folder for all, each
    hand a frame of the split "train" and of the split "evaluation".
    """
    to_gl = np.array([1.0, -1.0, -1.0])  # y up, looking along -z
    truth: dict[str, list[Any]] = {"xyz": [], "verts": []}
    for split in ("train", "evaluation"):
        frames = []
        for index, hand in enumerate(hands):
            sequence, frame = ("ABF10", "MC1")[index % 2], f"{10 * index:04d}"
            frames.append(f"{sequence}/{frame}")
            write_photo(root / split / sequence / "rgb" / f"{frame}{suffix}", index)
            joints = np.concatenate([hand.chain, hand.vertices[list(HO3D_TIPS)]]) * to_gl  # in MANO's order
            turned = vector_from_matrix(np.diag(to_gl) @ matrix_from_vector(hand.vectors[0]))
            pose = np.concatenate([turned, hand.vectors[1:].ravel()])
            meta: dict[str, Any] = {"camMat": K, "objName": "021_bleach_cleanser", "objLabel": 12}
            meta |= {"objRot": np.zeros((3, 1)), "objTrans": np.zeros(3), "objCorners3DRest": np.zeros((8, 3))}
            if split == "train":
                meta |= {"handJoints3D": joints, "handPose": pose, "handBeta": hand.betas, "handTrans": np.zeros(3)}
                meta |= {"handVertContact": np.zeros(778, bool)}
            else:
                meta |= {"handJoints3D": joints[0], "handBoundingBox": hand.box.tolist()}
                meta["handBoundingBox"] = np.array(meta["handBoundingBox"])
                truth["xyz"].append(joints.tolist())
                truth["verts"].append((hand.vertices * to_gl).tolist())
            place = root / split / sequence / "meta" / f"{frame}.pkl"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(pickle.dumps(meta, protocol=protocol))
        (root / f"{split}.txt").write_text("".join(f"{frame}\n" for frame in frames))
    for name, values in truth.items():
        _write_json(root / f"evaluation_{name}.json", values)
    return root / "train"


def _write_yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
