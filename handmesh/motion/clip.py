"""A clip in; an overlay video, a log of hands and an animated hand out.

One loop over the frames. What is found goes to `hands.jsonl` at once; everything else is made of that log: a frame that
is in the log already is only drawn, so a run that was killed goes on where it was, and ends with the same files as one
that was not. Drawing and encoding happen in a thread beside the network. Nothing grows with the clip but the log on the
disk, until the animation is made of it (0.5 KB for each frame of each hand).

"At once" has one exception: which hand a new one is may show only after some pictures. So while a hand is new, frames
wait; if it turns out to be the other one, they are followed again, with that known.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from handmesh.detect import Detector
from handmesh.errors import DataError, ExportError, ImageError
from handmesh.files.animation import encode_animation, encode_bvh
from handmesh.files.video import Codec, Frame, FrameSource, VideoWriter, open_source
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import HandArrays, Handedness, both_sides
from handmesh.motion.follow import HandFollower
from handmesh.motion.log import HandLog, LogHeader, hand_of, read_frames, read_tracks, record_of
from handmesh.motion.smoothing import Smoothing
from handmesh.motion.track import Tracking
from handmesh.predict import AUTO, HandPrediction, Predictor, overlay_hands
from handmesh.system.atomic import write_atomically
from handmesh.system.lock import locked

logger = logging.getLogger(__name__)

LOG_NAME = "hands.jsonl"
OVERLAY_NAME = "overlay.mp4"
ANIMATION_NAME = "hand.glb"

_DRAWN_AHEAD = 8  # frames that may wait for the encoder
# How long frames wait for the handedness of a new hand, and how many bytes of pictures may wait.
_NEW_HAND_SECONDS, _NEW_HAND_BYTES = 1.0, 256_000_000


@dataclass
class _Waiting:
    """A frame that was followed, and may be followed again."""

    frame: Frame
    before: dict[str, Any]  # state, from which following again starts
    after: dict[str, Any]
    hands: dict[int, HandPrediction]
    new: dict[int, Handedness]  # hands that are new here, and what they were taken for


def with_handedness_settled(
    frames: Iterable[Frame], follower: HandFollower, intrinsics: Intrinsics | None = None
) -> Iterator[tuple[Frame, dict[int, HandPrediction], dict[str, Any]]]:
    """Each frame with its hands by id, and the state of `follower` after it; no hand begins as the one that it is not.

    Where a hand is new, its frame and those after it wait for a second. If it turns out to be the other one by
    then, they are followed again from there on, with that known.
    """
    waiting: list[_Waiting] = []
    state = follower.state()
    for frame in frames:
        waiting.append(_follow(frame, follower, state, intrinsics))
        now = waiting[-1].hands
        mistaken = [
            index
            for index, item in enumerate(waiting)
            if any(id in now and now[id].handedness != side for id, side in item.new.items())
        ]
        if mistaken:
            first = mistaken[0]
            known = {id: now[id].handedness for id in waiting[first].new if id in now}
            follower.restore(waiting[first].before)
            for id, side in known.items():
                follower.tracker.expect(id, side)
            for index in range(first, len(waiting)):
                waiting[index] = _follow(waiting[index].frame, follower, follower.state(), intrinsics)
                for id in known:
                    waiting[index].new.pop(id, None)
        state = waiting[-1].after
        while waiting and not (waiting[0].new and _is_young(waiting)):
            done = waiting.pop(0)
            yield done.frame, done.hands, done.after
    for done in waiting:
        yield done.frame, done.hands, done.after


def follow_video(
    clip: str | os.PathLike[str] | int | FrameSource,
    predictor: Predictor,
    *,
    detector: Detector | None = None,
    handedness: Handedness | str = AUTO,
    intrinsics: Intrinsics | ArrayLike | None = None,
    tracking: Tracking | None = None,
    smoothing: Smoothing | None = Smoothing(),
    fps: float = 30.0,
) -> Iterator[tuple[Frame, dict[int, HandPrediction]]]:
    """Each frame of a clip with its hands by id: followed from frame to frame, and steadied.

        for frame, hands in follow_video("clip.mp4", predictor):
            frame.time, frame.image                     # seconds; (H, W, 3) uint8 RGB
            for id, hand in hands.items(): ...

    `clip`: what `open_source` takes (a file, a folder of photographs, which come at `fps`, a camera's number or
    address), or a source of your own. Of a clip no hand begins as the one that it is not: while one is new, its
    frames wait for up to a second. A camera's do not wait, and the newest comes. `detector`: who finds hands; None: the
    predictor's, or where it has none the network, in the whole picture, one hand. `intrinsics`: an `Intrinsics` or K.
    `smoothing`: None is what the network says. Options are those of `HandFollower`. Raises ImageError for a clip that
    cannot be read, ConfigError for options that cannot be meant.
    """
    follower = HandFollower(predictor, detector=detector, handedness=handedness, tracking=tracking, smoothing=smoothing)
    known = None if intrinsics is None else Intrinsics.of(intrinsics)
    return _followed(_opened(clip, fps), follower, known)


def _opened(clip: str | os.PathLike[str] | int | FrameSource, fps: float = 30.0) -> FrameSource:
    if isinstance(clip, str | os.PathLike | int):
        return open_source(str(clip), fps)
    if not hasattr(clip, "live"):
        raise ImageError(
            f"Cannot read a clip from {type(clip).__name__}; give a file, a folder of photographs, a camera's number "
            "or address, or a source of your own."
        )
    return clip


def _followed(
    source: FrameSource, follower: HandFollower, intrinsics: Intrinsics | None
) -> Iterator[tuple[Frame, dict[int, HandPrediction]]]:
    frames = iter(source.read, None)
    try:
        if source.live:
            yield from ((frame, follower(frame.image, frame.time, intrinsics)) for frame in frames)
        else:
            for frame, hands, _ in with_handedness_settled(frames, follower, intrinsics):
                yield frame, hands
    finally:
        source.close()


def _follow(frame: Frame, follower: HandFollower, before: dict[str, Any], intrinsics: Intrinsics | None) -> _Waiting:
    next_id = follower.tracker.next_id
    hands = follower(frame.image, frame.time, intrinsics)
    new = {id: hand.handedness for id, hand in hands.items() if id >= next_id and hand.handedness_source == "found"}
    return _Waiting(frame, before, follower.state(), hands, new)


def _is_young(waiting: Sequence[_Waiting]) -> bool:
    first, last = waiting[0].frame, waiting[-1].frame
    return last.time - first.time < _NEW_HAND_SECONDS and len(waiting) * first.image.nbytes < _NEW_HAND_BYTES


@dataclass(frozen=True)
class VideoOptions:
    """What to make of a clip, and how."""

    tracking: Tracking = field(default_factory=Tracking)
    smoothing: Smoothing | None = field(default_factory=Smoothing)
    overlay: bool = True
    animation: bool = True
    bvh: bool = False
    skin_only: bool = False  # leave the pose correctives out of the animation
    skeleton: bool = False  # draw bones instead of the mesh
    codec: Codec = "auto"


@dataclass(frozen=True)
class VideoResult:
    """What came of a clip."""

    frames: int
    frames_with_hands: int
    hands: int  # that are in the animation
    brief_hands: int  # that are not: seen in too few frames
    remarks: tuple[str, ...]  # what people should know about the clip, as sentences
    files: tuple[Path, ...]
    codec: str | None  # of the overlay, for people
    resumed_at: int  # frames that an earlier run had done; 0: none


def convert_clip(
    clip: str | os.PathLike[str] | FrameSource,
    out: str | os.PathLike[str],
    predictor: Predictor,
    *,
    detector: Detector | None = None,
    handedness: Handedness | str = AUTO,
    intrinsics: Intrinsics | ArrayLike | Callable[[int, int], Intrinsics] = Intrinsics.default_for,
    options: VideoOptions | None = None,
    settings: dict[str, Any] | None = None,
    restart: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> VideoResult:
    """Follow the hands of a clip and write overlay.mp4, hands.jsonl, hand.glb (and right_hand_1.bvh ...) into `out`.

    `clip`: a video file, a folder of photographs, or a source, which is closed in the end. `intrinsics`: an
    `Intrinsics` or K of the upright clip, or what makes one of its width and height. `settings`: what else, as plain
    values, must be the same for a run to be gone on with (the detector, boxes).
    `progress(done, of)` is called after each frame. `out` is made; a run that was interrupted there is gone on with
    unless `restart`. Raises OtherRunError when the folder is of another run, DataError when the clip has no frames,
    ExportError when a file cannot be written, and what source, detector and predictor raise.
    """
    folder, source = Path(out), _opened(clip)
    wanted = options or VideoOptions()
    with closing(source), ExitStack() as held:
        follower = HandFollower(
            predictor, detector=detector, handedness=handedness, tracking=wanted.tracking, smoothing=wanted.smoothing
        )
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder, held)
        first = source.read()
        if first is None:
            raise DataError(f"{source.name} has no frames.")
        height, width = first.image.shape[:2]
        known = intrinsics(width, height) if callable(intrinsics) else Intrinsics.of(intrinsics)
        header = LogHeader(
            clip=source.name,
            clip_digest=source.digest,
            width=width,
            height=height,
            fps=round(source.fps, 4),
            intrinsics=known,
            model=_model_name(predictor),
            options={
                "handedness": str(follower.tracker.handedness),
                "detector": follower.tracker.detector.name,
                "passes": predictor.passes,
                "tracking": asdict(wanted.tracking),
                "smoothing": None if wanted.smoothing is None else asdict(wanted.smoothing),
                **(settings or {}),
            },
        )
        if restart:
            _remove_results(folder)
        log = HandLog(folder / LOG_NAME, header, resume=not restart)
        resumed_at = log.frame_count
        if log.state is not None:
            follower.restore(log.state)
        try:
            frames = itertools.chain([first], iter(source.read, None))
            codec = _run(frames, log, follower, both_sides(predictor.engine.hand), wanted, folder, source, progress)
        finally:
            log.close()
    tracks = read_tracks(log.path)
    files = [log.path]
    hand = predictor.engine.hand
    if wanted.overlay:
        files.append(folder / OVERLAY_NAME)
    if wanted.animation:
        content = encode_animation(tracks, hand, correctives=not wanted.skin_only)
        write_atomically(folder / ANIMATION_NAME, content)
        files.append(folder / ANIMATION_NAME)
    if wanted.bvh:
        for track in tracks:
            path = folder / f"{track.name}.bvh"
            write_atomically(path, encode_bvh(track, hand, source.fps))
            files.append(path)
    with_hands, followed = 0, set()
    for item in read_frames(log.path):
        with_hands += bool(item["hands"])
        followed |= {(hand["id"], hand["handedness"]) for hand in item["hands"]}
    return VideoResult(
        frames=log.frame_count,
        frames_with_hands=with_hands,
        hands=len(tracks),
        brief_hands=len(followed) - len(tracks),
        remarks=tuple(source.remarks),
        files=tuple(files),
        codec=codec,
        resumed_at=resumed_at,
    )


def _hold(out: Path, held: ExitStack) -> None:
    """One run at a time writes a folder's log and overlay. Raises ExportError where another one does."""

    def refuse() -> None:
        raise ExportError(f"Another run is writing to {out}: wait for its end, or give another folder.")

    try:
        held.enter_context(locked(out / f".{LOG_NAME}.lock", refuse))
    except OSError as error:
        raise ExportError(f"Cannot write to {out}: {error.strerror or error}.") from error


def _remove_results(out: Path) -> None:
    """What a run made of its log. Beside the log of another run it would be taken for that one's."""
    if (out / LOG_NAME).is_file():
        animated = (path for side in Handedness for path in out.glob(f"{side}_hand_*.bvh"))
        for path in (out / OVERLAY_NAME, out / ANIMATION_NAME, *animated):
            path.unlink(missing_ok=True)


def _run(
    frames: Iterator[Frame],
    log: HandLog,
    follower: HandFollower,
    models: Mapping[Handedness, HandArrays],
    options: VideoOptions,
    out: Path,
    source: FrameSource,
    progress: Callable[[int, int | None], None] | None,
) -> str | None:
    """All frames through the network, or from the log, and into the overlay. The name of the overlay's codec."""
    intrinsics = log.header.intrinsics
    size = (log.header.width, log.header.height)
    done = read_frames(log.path) if log.frame_count else iter(())
    already = log.frame_count
    writer = VideoWriter(out / OVERLAY_NAME, size, source.fps, options.codec) if options.overlay else None

    def checked() -> Iterator[Frame]:
        for frame in frames:
            if frame.image.shape[:2] != size[::-1]:
                raise ExportError(
                    f"{source.name}: frame {frame.index} is {frame.image.shape[1]} x {frame.image.shape[0]}, the "
                    f"first was {size[0]} x {size[1]}."
                )
            if frame.index >= already and log.finished:
                raise DataError(f"{log.path} ends before {source.name} does: start it anew with --restart.")
            yield frame

    def with_records() -> Iterator[tuple[Frame, list[dict[str, Any]]]]:
        every = checked()
        for frame in itertools.islice(every, already):
            yield frame, next(done)["hands"]
        for frame, hands, state in with_handedness_settled(every, follower, intrinsics):
            records = [record_of(id, hand, models) for id, hand in hands.items()]
            log.append(frame.index, frame.time, records, state)
            yield frame, records

    def draw(frame: Frame, records: list[dict[str, Any]]) -> None:
        assert writer is not None
        hands = [hand_of(record, intrinsics, models) for record in records]
        writer.write(overlay_hands(frame.image, hands, skeleton=options.skeleton), frame.time)

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="overlay") as pool:
        try:
            for frame, records in with_records():
                if writer is not None:
                    waiting.append(pool.submit(draw, frame, records))
                    while len(waiting) > _DRAWN_AHEAD:
                        waiting.popleft().result()
                if progress is not None:
                    progress(frame.index + 1, source.frame_count)
            log.finish()
            for future in waiting:
                future.result()
            if writer is not None:
                writer.close()
        except BaseException:
            for future in waiting:
                future.cancel()
            pool.shutdown(wait=True)
            if writer is not None:
                writer.discard()
            raise
    return None if writer is None else writer.codec


def _model_name(predictor: Predictor) -> str:
    """What tells one model's answers from another's, for people too."""
    record = predictor.engine.record
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return f"{record.get('model', {}).get('backbone', 'model')} {digest[:8]}, {predictor.engine.name}"
