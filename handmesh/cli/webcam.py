"""`handmesh webcam`: hands followed live."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from handmesh.cli.shell import (
    BoxOption,
    DetectorOption,
    HandOption,
    JsonOption,
    MaxHandsOption,
    ModelOption,
    SmoothOption,
    check_finder,
    check_folder,
    check_ignored,
    console,
    hand_finder,
    parse_hand,
    parse_smoothing,
    say,
    say_json,
    summary_of,
)
from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS


def webcam(
    context: typer.Context,
    source: Annotated[
        str, typer.Option(metavar="N|clip.mp4|rtsp://...|DIR", help="A camera's number, or what stands in for one.")
    ] = "0",
    hand: HandOption = "auto",
    detector: DetectorOption = None,
    box: BoxOption = None,
    guide: Annotated[
        bool,
        typer.Option("--guide", help="Wait for a hand in a square in the middle, instead of searching everywhere."),
    ] = False,
    max_hands: MaxHandsOption = None,
    smooth: SmoothOption = 1.0,
    skeleton: Annotated[bool, typer.Option("--skeleton", help="Start with bones instead of the mesh.")] = False,
    mirror: Annotated[bool | None, typer.Option(help="Show as in a mirror; default: for cameras.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for screenshots and recordings.")
    ] = Path("handmesh_out"),
    headless: Annotated[bool, typer.Option("--headless", help="No window: say once a second what is seen.")] = False,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="With --headless and a clip: milliseconds of each stage.")
    ] = False,
    frames: Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop after so many.")] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_THREADS, help="Of the network.")] = 1,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Follow hands live in a window: h which hand, m mesh/bones, f mirror, c record, s screenshot, r search, q quit.

    With --headless --json it prints a line of JSON for each frame: hands with their ids, scores, keypoints and joints.

    Examples:
      handmesh webcam

      handmesh webcam --source rtsp://192.168.1.5/stream --hand left

      handmesh webcam --source clip.mp4 --headless --benchmark
    """
    from handmesh.files.video import open_source
    from handmesh.motion.benchmark import benchmark as run_benchmark
    from handmesh.motion.follow import HandFollower
    from handmesh.motion.live import LivePipeline, run_headless
    from handmesh.motion.track import Tracking
    from handmesh.motion.window import LiveOptions, check_display, run_window
    from handmesh.predict import load_predictor

    if benchmark and not headless:
        raise ConfigError("--benchmark goes with --headless: a window's own pace would be measured.")
    if guide and (box or detector is not None):
        raise ConfigError("--guide says where to look, as --box and --detector do: give one of them.")
    if guide and max_hands is not None:
        raise ConfigError("--guide waits for one hand, --max-hands is of hands that are found: give one of them.")
    check_finder(detector, box, max_hands)
    if headless:
        why = "of the window, and --headless opens none: give one of them."
        check_ignored(context, ["skeleton", "mirror", "out"], why)
    if json and not headless:
        raise ConfigError("--json goes with --headless: a window says nothing to a script.")
    side = parse_hand(hand)
    smoothing = parse_smoothing(smooth)
    if not headless:
        check_folder(out)
        check_display()
    pictures = open_source(source)
    if benchmark and pictures.live:
        raise ConfigError(f"--benchmark measures on a clip, {source} is live: its own rate would be measured.")
    square = None
    if guide:
        first = pictures.read()
        if first is None:
            raise ConfigError(f"{source} has no pictures.")
        square = _guide(first.image.shape)
        box = [",".join(f"{edge:.1f}" for edge in square)]
    finder, most = hand_finder(detector, box, max_hands)
    predictor = load_predictor(model, detector=finder, threads=threads)
    live = HandFollower(
        predictor, detector=finder, handedness=side, tracking=Tracking(max_hands=most), smoothing=smoothing
    )
    if benchmark:
        measured = run_benchmark(pictures, live, predictor, max_frames=frames or 600)
        if json:
            say_json(measured)
            return
        table = Table(title=Text(f"{predictor.engine.name}: {measured.frames} frames, {measured.followed} with a hand"))
        table.add_column("stage")
        table.add_column("ms per frame", justify="right")
        for name, milliseconds in measured.stages_ms.items():
            table.add_row(name, f"{milliseconds:.2f}")
        console.print(table)
        share = measured.loop_fps / measured.engine_fps
        say(
            f"loop {measured.loop_fps:.1f} fps at {measured.crops_per_frame:.2f} crops per frame, network alone "
            f"{measured.engine_fps:.1f} crops/s: {share:.2f} of it"
        )
        say(
            f"CPU time: {measured.thread_ms:.1f} ms per frame in the network's thread, {measured.engine_ms:.1f} "
            f"ms per crop alone: {measured.engine_ms / measured.thread_ms:.2f} of it where each thread has a core"
        )
        return
    pipeline = LivePipeline(pictures, live, newest=True, paced=True)
    if headless:
        total = run_headless(pipeline, max_frames=frames, seen=_say_frame if json else _Reporter())
        if not json:
            say(f"{total} frames")
        return
    options = LiveOptions(
        out=out,
        skeleton=skeleton,
        mirror=pictures.live if mirror is None else mirror,
        guide=square,
        max_frames=frames,
    )
    run_window(pipeline, predictor, options, handedness=side, say=say)


def _say_frame(result: Any) -> None:
    """Each frame, in a line: what a script makes something of while the hand moves."""
    hands = [
        {"id": id, **summary_of(hand), "keypoints_px": hand.keypoints_image().tolist(), "joints": hand.joints.tolist()}
        for id, hand in result.hands.items()
    ]
    say_json({"frame": result.frame.index, "time": result.frame.time, "hands": hands})


class _Reporter:
    """Once a second: where hands are."""

    def __init__(self) -> None:
        self._next = 0.0  # seconds; pictures that a slow network skips count, too

    def __call__(self, result: Any) -> None:
        if result.frame.time >= self._next:
            self._next = math.floor(result.frame.time) + 1
            hands = "; ".join(
                f"{id} {hand.handedness} at {', '.join(f'{edge:.0f}' for edge in hand.box)}"
                for id, hand in result.hands.items()
            )
            say(f"{result.frame.time:7.2f} s  {1000 * result.seconds:5.1f} ms  {hands or 'no hand'}")


def _guide(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """A square in the middle, six tenths of the picture's shorter side."""
    height, width = shape[:2]
    half = 0.3 * min(height, width)
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half
