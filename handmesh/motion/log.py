"""hands.jsonl: what was found in a clip, one line of JSON per frame, written as it is found.

The first line says what the file is; each following one is a frame; the last one says that there are no more. A line is
written whole and handed to the operating system before the next frame is, so a run that is killed leaves all
finished frames, and `HandLog` goes on from there. docs/how_to/video.md describes every field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import DataError, ExportError, OtherRunError
from handmesh.files.animation import HandTrack
from handmesh.files.glb import generator
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera
from handmesh.geometry.crop import CropTransform
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import BONES, JOINT_NAMES, MANO_JOINT_COUNT, MANO_JOINT_NAMES, HandArrays, Handedness
from handmesh.hand.anatomy import flexion_axes
from handmesh.predict import HandPrediction
from handmesh.system.atomic import write_atomically

LOG_FORMAT: Final = "handmesh.video"
LOG_VERSION: Final = 1


@dataclass(frozen=True)
class LogHeader:
    """What a whole log shares. Two runs may be joined when all of it is equal."""

    clip: str  # name of the file
    clip_digest: str  # of its content; empty of a camera's recording
    width: int  # px, upright
    height: int
    fps: float  # nominal; every frame has its own time
    intrinsics: Intrinsics
    model: str  # what computes
    options: Mapping[str, Any]  # of tracking and smoothing, plain values


def record_of(id: int, hand: HandPrediction, models: Mapping[Handedness, HandArrays]) -> dict[str, Any]:
    """A tracked hand as the log holds it: camera frame, rotation vectors, `vertices_cam = posed + translation`."""
    axes = hand.cam_from_hand_axes()
    pose = hand.pose.astype(np.float64).copy()
    pose[0] = axes @ pose[0]
    # A hand model turns about its root joint j: axes @ (R (p - j) + j) + origin = (axes R) (p - j) + j + translation.
    root = models[hand.handedness].shaped(hand.betas).joints[0]
    translation = hand.origin_cam().astype(np.float64) + axes @ root - root
    return {
        "id": id,
        "handedness": str(hand.handedness),
        "handedness_source": hand.handedness_source,
        "handedness_score": round(hand.handedness_score, 4),
        "score": round(hand.score, 4),
        **({} if hand.joint_scores is None else {"joint_scores": _rounded(hand.joint_scores, 4)}),
        "source": hand.source,
        "box_px": _rounded(hand.box, 3),
        "pose": _rounded(vector_from_matrix(pose), 6),
        "betas": _rounded(hand.betas, 5),
        "translation": _rounded(translation, 6),
        "joints": _rounded(hand.joints_cam(), 6),
        "keypoints_px": _rounded(hand.keypoints_image(), 3),
        "crop_center_px": _rounded(hand.crop.center, 4),
        "crop_size_px": round(hand.crop.size, 4),
        "camera_scale_ndc_per_m": round(float(hand.camera.scale), 6),
        "camera_translation_m": _rounded(hand.camera.translation, 7),
    }


def hand_of(
    record: Mapping[str, Any], intrinsics: Intrinsics, models: Mapping[Handedness, HandArrays]
) -> HandPrediction:
    """The hand that a record was made of, to the digits that it holds."""
    side = Handedness(record["handedness"])
    crop = CropTransform((record["crop_center_px"][0], record["crop_center_px"][1]), record["crop_size_px"])
    pose = matrix_from_vector(record["pose"])
    pose[0] = intrinsics.virtual_camera_rotation(crop.center) @ pose[0]
    betas = np.array(record["betas"], np.float32)
    posed = models[side].shaped(betas).posed(pose)
    joint_scores = record.get("joint_scores")
    x0, y0, x1, y1 = record["box_px"]
    return HandPrediction(
        handedness=side,
        handedness_source=record.get("handedness_source", "given"),  # logs of earlier versions do not say
        handedness_score=record.get("handedness_score", 1.0),
        score=record["score"],
        joint_scores=None if joint_scores is None else np.array(joint_scores, np.float32),
        box=(x0, y0, x1, y1),
        crop=crop,
        camera=WeakPerspectiveCamera(
            np.float32(record["camera_scale_ndc_per_m"]), np.array(record["camera_translation_m"], np.float32)
        ),
        pose=pose.astype(np.float32),
        betas=betas,
        vertices=posed.vertices.astype(np.float32),
        joints=posed.joints.astype(np.float32),
        faces=models[side].faces,
        source=record["source"],
        intrinsics=intrinsics,
        flexion_axes=flexion_axes(models[side]).astype(np.float32),
    )


def _rounded(values: Any, digits: int) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


class HandLog:
    """A log being written, or gone on with.

    Beside it lies `<name>.resume`, replaced after every frame: how long the log was, and the state of whoever writes it
    (`Tracker.state` and the like). Both survive a killed process; after a power cut the log may be behind, and then the
    run starts anew.
    """

    def __init__(self, path: Path, header: LogHeader, *, resume: bool = True) -> None:
        """Go on with what is there, or start anew. Raises OtherRunError when what is there is of another run."""
        self.path, self.header = path, header
        self._resume_path = path.with_name(f".{path.name}.resume")
        self.frame_count = 0  # frames that the log holds
        self.finished = False
        self.state: Any = None  # of the writer, after the last frame
        line = json.dumps(_header_line(header), separators=(",", ":"), allow_nan=False) + "\n"
        if resume and path.is_file():
            self._read_back(line)
        if not self.frame_count and not self.finished:
            write_atomically(path, line.encode())
            self._resume_path.unlink(missing_ok=True)
        self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        self._length = path.stat().st_size

    def _read_back(self, line: str) -> None:
        with open(self.path, "rb") as file:
            first = file.readline()
            file.seek(0, os.SEEK_END)
            length = file.tell()
        if first != line.encode():
            if length == len(first) and _header_of(first) is not None:  # of a run that ended before its first frame
                return
            raise OtherRunError(
                f"{self.path} is of another clip, model or setting ({_difference(first, line)}). Give another folder, "
                "or start it anew with --restart."
            )
        try:
            resume = json.loads(self._resume_path.read_text(encoding="utf-8"))
            where, count, self.state = int(resume["length"]), int(resume["frames"]), resume["state"]
            self.finished = bool(resume["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if where > length:  # the disk lost the end of the log
            self.state, self.finished = None, False
            return
        os.truncate(self.path, where)  # a line that was being written
        self.frame_count = count

    def append(self, frame: int, time: float, hands: Sequence[Mapping[str, Any]], state: Any) -> None:
        """One more frame, and the state with which the run goes on after it."""
        assert frame == self.frame_count, (frame, self.frame_count)
        self.frame_count += 1
        self._write({"frame": frame, "time": round(time, 6), "hands": list(hands)}, state)

    def finish(self) -> None:
        """No more frames."""
        if not self.finished:
            self.finished = True
            self._write({"end": True, "frames": self.frame_count}, None)
            os.fsync(self._file.fileno())

    def _write(self, item: Mapping[str, Any], state: Any) -> None:
        try:
            self._length += self._file.write(json.dumps(item, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            self._file.flush()
            resume = {"length": self._length, "frames": self.frame_count, "finished": self.finished, "state": state}
            write_atomically(self._resume_path, json.dumps(resume, separators=(",", ":")).encode())
        except OSError as error:
            raise ExportError(f"Cannot write {self.path}: {error.strerror or error}.") from error

    def close(self) -> None:
        with suppress(OSError):  # every line was flushed when it was written; what the disk did not take was said then
            self._file.close()


def _header_line(header: LogHeader) -> dict[str, Any]:
    return {
        "format": LOG_FORMAT,
        "version": LOG_VERSION,
        "generator": generator(),
        "clip": header.clip,
        "clip_digest": header.clip_digest,
        "width": header.width,
        "height": header.height,
        "fps": header.fps,
        "intrinsics_px": _rounded(header.intrinsics.matrix, 4),
        "intrinsics_source": header.intrinsics.source,
        "axes": "x right, y down, z forward",
        "units": {"length": "metre", "angle": "radian", "image": "pixel", "time": "second"},
        "joint_names": list(JOINT_NAMES),
        "bones": [list(bone) for bone in BONES],
        "pose_joint_names": list(MANO_JOINT_NAMES),
        "model": header.model,
        "options": dict(header.options),
    }


def _header_of(line: bytes) -> dict[str, Any] | None:
    """None: it is none of ours."""
    try:
        header = json.loads(line)
    except ValueError:
        return None
    ours = isinstance(header, dict) and header.get("format") == LOG_FORMAT and header.get("version") == LOG_VERSION
    return header if ours else None


def _difference(found: bytes, wanted: str) -> str:
    try:
        one, other = (header | header.pop("options") for header in (json.loads(found), json.loads(wanted)))
        keys = [key for key in other if one.get(key) != other[key]]
        return ", ".join(f"{key}: {str(one.get(key))[:80]}, now {str(other[key])[:80]}" for key in keys)
    except (ValueError, AttributeError, KeyError, TypeError):
        return "its first line is no header of ours"


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a log. Raises DataError when it is none of ours."""
    try:
        with open(path, "rb") as file:
            header = _header_of(file.readline())
    except FileNotFoundError:
        raise DataError(f"No log at {path}.") from None
    if header is None:
        raise DataError(f"{path} is no log of hands of version {LOG_VERSION}: its first line does not say so.")
    return header


def read_frames(path: Path) -> Iterator[dict[str, Any]]:
    """The frames of a log, one after the other. Raises DataError where a line is damaged."""
    read_header(path)
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            try:
                item = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}.") from error
            if item.get("end"):
                return
            yield item


# A hand seen in fewer pictures is as likely none; of a clip that is shorter, in all of them.
MIN_TRACK_FRAMES: Final = 3


def read_tracks(path: Path, *, min_frames: int = MIN_TRACK_FRAMES) -> list[HandTrack]:
    """The hands of a log, each through all its frames, by id.

    Hands seen in fewer than `min_frames` of them are left out; of a log that has fewer, those not seen in all.

    A hand has one shape: the median over its frames, which is the one it settled on when that took less than half of
    them. A hand whose side was corrected on the way is two. Memory: 0.5 KB for each frame of each hand.
    """
    found: dict[tuple[int, str], list[tuple[int, float, NDArray[np.float32]]]] = {}
    frame_count = 0
    for item in read_frames(path):
        frame_count += 1
        for hand in item["hands"]:
            row = np.concatenate([np.ravel(hand["pose"]), hand["translation"], hand["betas"]]).astype(np.float32)
            found.setdefault((hand["id"], hand["handedness"]), []).append((item["frame"], item["time"], row))
    tracks = []
    for (id, side), rows in sorted(found.items()):
        if len(rows) < min(min_frames, frame_count):
            continue
        values = np.stack([row for _, _, row in rows])
        rotations, translations, betas = np.split(values, [3 * MANO_JOINT_COUNT, 3 * MANO_JOINT_COUNT + 3], axis=1)
        tracks.append(
            HandTrack(
                name=f"{side}_hand_{id}",
                handedness=Handedness(side),
                frames=np.array([frame for frame, _, _ in rows], np.int64),
                times=np.array([time for _, time, _ in rows], np.float64),
                rotations=rotations.reshape(-1, MANO_JOINT_COUNT, 3),
                translations=translations,
                betas=np.median(betas, axis=0).astype(np.float32),
            )
        )
    return tracks
