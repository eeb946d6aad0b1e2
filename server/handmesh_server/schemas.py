"""The questions and answers of the API as types: what the OpenAPI document says, and what queries are checked against.

Answers are written by answers.py from arrays, not through these models (that is ten times faster); tests check that
they agree. Names are those of handmesh's own .json files: docs/reference/outputs.md.
"""

# Types of arrays come from a function, `_array`, which pydantic evaluates and mypy cannot.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from handmesh.errors import ConfigError
from handmesh.files.image import ImageFormat
from handmesh.geometry.crop import CropTransform
from handmesh.hand import BETA_COUNT, JOINT_COUNT, MANO_JOINT_COUNT, VERTEX_COUNT
from handmesh.predict import MAX_HANDS as DEFAULT_MAX_HANDS
from handmesh.predict import MIN_SCORE
from handmesh_server.errors import QueryInvalid

MAX_HANDS: Final = 16  # boxes in one request

_NUMBER = r"-?[0-9]{1,7}(\.[0-9]{1,6})?"


def _checked_box(text: str) -> str:
    try:
        CropTransform.around_box([float(part) for part in text.split(",")])
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


BoxText = Annotated[
    str, Field(pattern=f"^{_NUMBER}(,{_NUMBER}){{3}}$", examples=["40,30,210,200"]), AfterValidator(_checked_box)
]


class _PhotoQuery(BaseModel):
    """What can be asked of any photo. An unknown name is an error: a misspelt `box` would silently be the whole one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    focal: Annotated[
        float | None, Field(ge=1, le=1e6, description="Focal length in pixels, for positions in space.")
    ] = None
    fov: Annotated[
        float | None,
        Field(ge=1, le=179, description="Angle that the photo's longer side spans, in degrees, instead of focal."),
    ] = None
    min_score: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Of the hands that are found, one of a lower score is left out; the list may be empty. "
            "Not with a box.",
        ),
    ] = MIN_SCORE
    max_hands: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_HANDS,
            description="Of the hands that are found, so many at most, the most certain. Not with a box.",
        ),
    ] = DEFAULT_MAX_HANDS
    search: Annotated[
        Literal["fast", "thorough"],
        Field(
            description="thorough: look at parts of the photo, too, for small hands; five times the work. "
            "Not with a box."
        ),
    ] = "fast"
    encoding: Annotated[
        Literal["numbers", "base64"],
        Field(description="How the JSON answer holds arrays: nested lists, or base64 of little-endian float32."),
    ] = "numbers"

    @property
    def fov_radians(self) -> float | None:
        return None if self.fov is None else math.radians(self.fov)

    def check(self) -> None:
        """What one parameter alone does not show. Raises QueryInvalid."""
        if self.focal is not None and self.fov is not None:
            raise QueryInvalid("focal and fov say the same thing in two ways: give one of them.")


class HandsQuery(_PhotoQuery):
    """The query of POST /v1/hands."""

    box: Annotated[
        list[BoxText],
        Field(
            max_length=MAX_HANDS,
            description="Where a hand is: x0,y0,x1,y1 in pixels of the upright photo. Repeat it for several hands. "
            "Without it every hand of the photo is found.",
        ),
    ] = []
    hand: Annotated[
        list[Literal["auto", "right", "left"]],
        Field(
            min_length=1,
            max_length=MAX_HANDS,
            description="Which hand it is: once for all, or once for each box. auto: the model finds "
            "out if it can, else a right hand is assumed; `handedness_source` says which.",
        ),
    ] = ["auto"]

    @property
    def boxes(self) -> list[tuple[float, float, float, float]] | None:
        """x0, y0, x1, y1 in pixels; None: the whole photo."""
        boxes = []
        for text in self.box:
            x0, y0, x1, y1 = map(float, text.split(","))
            boxes.append((x0, y0, x1, y1))
        return boxes or None

    @property
    def sides(self) -> list[Literal["auto", "right", "left"]]:
        """One for each hand."""
        return self.hand if len(self.hand) == self.hands else self.hand * self.hands

    @property
    def hands(self) -> int:
        """How many are asked for: places in the queue."""
        return max(1, len(self.box))

    def with_fields(self, fields: Sequence[tuple[str, str]]) -> HandsQuery:
        """What a form says beside its photo, too: the same names as in the query. Raises QueryInvalid."""
        given: dict[str, Any] = self.model_dump(exclude_unset=True)
        for name, value in fields:
            if name not in type(self).model_fields:
                raise QueryInvalid(f"The form has a field {name[:100]!r}; beside the photo there may be: {_NAMES}.")
            if name in _LISTS:
                given.setdefault(name, []).append(value)
            elif name in given:
                raise QueryInvalid(f"{name} is given twice.")
            else:
                given[name] = value
        try:
            query = HandsQuery(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise QueryInvalid(f"Form field {first['loc'][0]}: {what}.") from None
        query.check()
        return query

    def check(self) -> None:
        """What one parameter alone does not show. Raises QueryInvalid."""
        super().check()
        if self.box and self.search == "thorough":
            raise QueryInvalid("search=thorough looks for hands, and box says where they are: give one of them.")
        for name in ("max_hands", "min_score"):
            if self.box and name in self.model_fields_set:
                raise QueryInvalid(f"{name} is of hands that are found, and box says where they are: give one of them.")
        if len(self.hand) not in (1, self.hands):
            raise QueryInvalid(
                f"hand is given {len(self.hand)} times for {self.hands} hands: once for all, or once for each box."
            )


class BatchQuery(_PhotoQuery):
    """The query of POST /v1/batches: the same for all photos."""

    hand: Annotated[
        Literal["auto", "right", "left"], Field(description="Which hand the photos show; auto: the model finds out.")
    ] = "auto"

    def of_a_photo(self) -> HandsQuery:
        return HandsQuery(hand=[self.hand], **self.model_dump(exclude={"hand"}))


class VideoQuery(BaseModel):
    """The query of POST /v1/videos: what `handmesh video` takes as options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hand: Annotated[
        Literal["auto", "right", "left"], Field(description="Which hand the clip shows; auto: the model finds out.")
    ] = "auto"
    smooth: Annotated[
        float, Field(ge=0, le=20, description="0 not at all, 1 normal, 2 twice as steady; from 0.05 on.")
    ] = 1.0
    max_hands: Annotated[int, Field(ge=1, le=DEFAULT_MAX_HANDS, description="That are followed at a time.")] = 2
    skeleton: Annotated[bool, Field(description="Draw bones instead of the mesh.")] = False
    bvh: Annotated[bool, Field(description="Make a .bvh for each hand, too.")] = False
    focal: Annotated[
        float | None, Field(ge=1, le=1e6, description="Focal length in pixels, for positions in space.")
    ] = None
    fov: Annotated[
        float | None,
        Field(ge=1, le=179, description="Angle that a picture's longer side spans, in degrees, instead of focal."),
    ] = None

    def check(self) -> None:
        """What one parameter alone does not show. Raises QueryInvalid."""
        if self.focal is not None and self.fov is not None:
            raise QueryInvalid("focal and fov say the same thing in two ways: give one of them.")
        if 0 < self.smooth < 0.05:
            raise QueryInvalid("smooth is 0, or from 0.05 to 20.")


_LISTS: Final = ("box", "hand")
_NAMES: Final = ", ".join(HandsQuery.model_fields)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Base64Array(_Answer):
    """`numpy.frombuffer(base64.b64decode(base64), "<f4").reshape(shape)`"""

    dtype: Literal["float32"]
    shape: list[int]
    base64: str

    def array(self) -> NDArray[np.float32]:
        """As numpy has it."""
        return np.frombuffer(b64decode(self.base64), "<f4").reshape(self.shape)


def _array(*shape: int, text: str) -> Any:
    """A field of nested lists of this shape, or Base64Array."""
    numbers: Any = float
    for count in reversed(shape):
        numbers = Annotated[list[numbers], Field(min_length=count, max_length=count)]
    return Annotated[numbers | Base64Array, Field(description=text)]


class Image(_Answer):
    width: int = Field(description="Pixels of the upright photo, after its EXIF orientation.")
    height: int
    format: ImageFormat
    orientation: int = Field(ge=1, le=8, description="The EXIF orientation that was undone.")


class Hand(_Answer):
    name: str
    handedness: Literal["right", "left"]
    handedness_source: Literal["given", "found", "assumed"] = Field(
        description="By the query, by the model, or by nobody: this model cannot tell, so a right hand is assumed."
    )
    handedness_score: float = Field(ge=0, le=1, description="Confidence that this is the side; 1 if given.")
    score: float = Field(
        ge=0,
        le=1,
        description="How likely it is that there is a hand and that its joints are within 0.15 of its size; from 0.5 "
        "on lower, the likelier a finger is lost. Of a model without that output: how well the last two passes agree.",
    )
    joint_scores: _array(JOINT_COUNT, text="How likely each joint is within 0.06 of the hand's size.") | None = Field(
        default=None, description="Not there when the model cannot tell."
    )
    source: str = Field(description='How the box was found: "given box", "whole image", ...')
    box_px: _array(4, text="x0, y0, x1, y1 around the keypoints.")
    keypoints_px: _array(JOINT_COUNT, 2, text="x, y of the 21 joints.")
    joints: _array(JOINT_COUNT, 3, text="Metres, hand frame: x right, y down, z away.")
    vertices: _array(VERTEX_COUNT, 3, text="Metres, hand frame. Faces: GET /v1/topology.")
    pose: _array(MANO_JOINT_COUNT, 3, 3, text="Parent-relative rotations; the first is the orientation.")
    betas: _array(BETA_COUNT, text="Shape coefficients.")
    camera_scale_ndc_per_m: float = Field(
        description="The weak-perspective camera, which draws the overlay exactly: a point p of the hand frame is at "
        "crop_center_px + crop_size_px / 2 * camera_scale_ndc_per_m * (p.xy + camera_translation_m)."
    )
    camera_translation_m: _array(2, text="Of the weak-perspective camera.")
    crop_center_px: _array(2, text="The square the weak-perspective camera belongs to.")
    crop_size_px: float
    translation: _array(3, text="Metres: the hand in the full camera's frame is cam_from_hand_axes @ p + translation.")
    cam_from_hand_axes: _array(3, 3, text="Rotation from the hand frame to the full camera's.")
    intrinsics_px: _array(3, 3, text="K of the full camera.")
    intrinsics_source: Literal["given", "field of view", "exif", "default"]

    def array(self, name: str) -> NDArray[np.float32]:
        """A field of numbers, such as "vertices", in whichever encoding it came."""
        value = getattr(self, name)
        return value.array() if isinstance(value, Base64Array) else np.asarray(value, np.float32)


class HandsAnswer(_Answer):
    """Everything about the hands of one photo; an empty list when there is none."""

    format: Literal["handmesh.hands"]
    version: Literal[1]
    request_id: str
    image: Image
    hands: list[Hand]


class Problem(_Answer):
    """RFC 9457."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    reason: str = Field(description="A word for programs.")
    request_id: str


class BatchLine(_Answer):
    """A line of a batch's answer: one photo's fate, in the order in which they are done."""

    index: int = Field(description="The photo's place in the batch, from 0.")
    name: str = Field(description="Its file name as it was sent.")
    status: int = Field(description="What POST /v1/hands answers for this photo alone.")
    answer: HandsAnswer | None = Field(default=None, description="With status 200.")
    problem: Problem | None = Field(default=None, description="With every other status.")


class BatchEnd(_Answer):
    """The last line. Where it is missing, the answer was cut off."""

    end: Literal[True]
    photos: int
    answered: int = Field(description="Photos with status 200.")


class JobFile(_Answer):
    """Something that came of a clip."""

    name: str
    media_type: str
    bytes: int
    url: str = Field(description="Path on this server; it takes Range requests.")


class JobProblem(_Answer):
    reason: Literal["unreadable_clip", "failed", "crashed", "timeout", "storage_full"]
    detail: str


class Job(_Answer):
    """A clip in work, and what came of it."""

    format: Literal["handmesh.job"]
    version: Literal[1]
    id: str = Field(description="Who knows it can see and delete the job: it cannot be guessed.")
    status: Literal["queued", "running", "done", "failed"]
    created: float = Field(description="Seconds since 1970, UTC.")
    expires: float | None = Field(description="When results are deleted; null until the job has ended.")
    frames_done: int
    frames: int | None = Field(description="Of the clip; null when that is not known.")
    frames_with_hands: int | None = Field(default=None, description="When it is done.")
    hands: int | None = Field(default=None, description="That are in the animation, when it is done.")
    remarks: list[str] = Field(default=[], description="What people should know about the clip.")
    files: list[JobFile] = Field(default=[], description="When it is done: overlay.mp4, hands.jsonl, hand.glb, .bvh.")
    problem: JobProblem | None = Field(default=None, description="When it failed.")


class Faces(_Answer):
    right: list[Annotated[list[int], Field(min_length=3, max_length=3)]]
    left: list[Annotated[list[int], Field(min_length=3, max_length=3)]]


class Topology(_Answer):
    """What does not change from hand to hand."""

    faces: Faces = Field(description="Vertex numbers, counter-clockwise seen from outside.")
    joint_names: list[str]
    joint_parents: list[int] = Field(description="The parent of each joint; -1 for the wrist.")
    bones: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(description="Pairs of joints.")
    fingertip_vertices: list[int]
    pose_joint_names: list[str] = Field(description="The joints of `pose`.")
    pose_parents: list[int]


class HandModelCard(_Answer):
    name: str
    sha256: str
    licence: str


class ModelCard(_Answer):
    name: str
    engine: str
    backbone: str | None
    resolution: int
    passes: int
    max_batch: int
    hand: HandModelCard
    licences: dict[str, str]
    version: str


class Health(_Answer):
    status: Literal["ready", "loading", "draining", "failed", "stalled", "live"]
