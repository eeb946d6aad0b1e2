"""`handmesh video`: hands followed through a clip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from handmesh.cli.shell import (
    BoxOption,
    DetectorOption,
    FocalOption,
    FovOption,
    HandOption,
    JsonOption,
    MaxHandsOption,
    ModelOption,
    SmoothOption,
    camera_of,
    check_folder,
    check_ignored,
    hand_finder,
    parse_hand,
    parse_smoothing,
    progress_bar,
    say,
    say_json,
    words,
)
from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS


def video(
    context: typer.Context,
    clip: Annotated[
        str,
        typer.Argument(
            metavar="CLIP|DIR", help="A video file, or a folder of photographs in the order of their names."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the results; default: handmesh_out/ and its name."),
    ] = None,
    hand: HandOption = "auto",
    detector: DetectorOption = None,
    box: BoxOption = None,
    max_hands: MaxHandsOption = None,
    smooth: SmoothOption = 1.0,
    overlay: Annotated[bool, typer.Option(help="Write overlay.mp4.")] = True,
    codec: Annotated[
        str,
        typer.Option(
            metavar="auto|h264|vp9|mp4v", help="Of overlay.mp4.", autocompletion=words("auto", "h264", "vp9", "mp4v")
        ),
    ] = "auto",
    skeleton: Annotated[bool, typer.Option("--skeleton", help="Draw bones instead of the mesh.")] = False,
    glb: Annotated[bool, typer.Option(help="Write hand.glb, skinned and animated.")] = True,
    skin_only: Annotated[
        bool, typer.Option("--skin-only", help="Leave pose correctives out of hand.glb: smaller, a little less exact.")
    ] = False,
    bvh: Annotated[bool, typer.Option("--bvh", help="Write a .bvh for each hand, too.")] = False,
    focal: FocalOption = None,
    fov: FovOption = None,
    fps: Annotated[float, typer.Option(metavar="FPS", min=1, max=1000, help="Rate of a folder of photographs.")] = 30.0,
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on with an interrupted run.")] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_THREADS, help="Of the network.")] = 1,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Follow hands through a clip: overlay video, log of hands, animated hand for Blender, three.js and Unity.

    Interrupted, it goes on where it was; run again with other drawing options, it only draws again.

    Examples:
      handmesh video clip.mp4

      handmesh video clip.mp4 --out results --hand left --bvh

      handmesh video party.mp4 --max-hands 4
    """
    from handmesh.files.video import CODECS, open_source
    from handmesh.motion.clip import VideoOptions, convert_clip
    from handmesh.motion.log import MIN_TRACK_FRAMES
    from handmesh.motion.track import Tracking
    from handmesh.predict import load_predictor

    if codec not in CODECS:
        raise ConfigError(f"--codec {codec!r}: wanted one of {', '.join(CODECS)}.")
    if not overlay:
        check_ignored(context, ["codec", "skeleton"], "of overlay.mp4, and --no-overlay writes none: give one of them.")
    if not glb:
        check_ignored(context, ["skin_only"], "of hand.glb, and --no-glb writes none: give one of them.")
    if not Path(clip).is_dir():
        check_ignored(context, ["fps"], f"of a folder of photographs, and {clip} is none: leave it out.")
    side = parse_hand(hand)
    smoothing = parse_smoothing(smooth)
    camera_of(focal, fov, (1, 1))
    finder, most = hand_finder(detector, box, max_hands)
    source = open_source(clip, fps)
    if source.live:
        raise ConfigError(f"{clip} is a camera or stream, which has no end: see `handmesh webcam`.")
    folder = out or Path("handmesh_out") / Path(os.path.abspath(clip)).stem  # "." and ".." have a name, too
    check_folder(folder)

    def camera(width: int, height: int) -> Any:
        from handmesh.geometry.camera import Intrinsics

        return camera_of(focal, fov, (width, height)) or Intrinsics.default_for(width, height)

    predictor = load_predictor(model, detector=finder, threads=threads)
    with progress_bar() as progress:
        task = progress.add_task(source.name, total=source.frame_count)
        result = convert_clip(
            source,
            folder,
            predictor,
            detector=finder,
            handedness=side,
            intrinsics=camera,
            options=VideoOptions(
                tracking=Tracking(max_hands=most),
                smoothing=smoothing,
                overlay=overlay,
                animation=glb,
                bvh=bvh,
                skin_only=skin_only,
                skeleton=skeleton,
                codec=codec,
            ),
            settings={"boxes": box or []},
            restart=restart,
            progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
        progress.update(task, completed=result.frames, total=result.frames)
    if json:
        say_json(result)
        return
    earlier = f" ({result.resumed_at} of them by an earlier run)" if result.resumed_at else ""
    say(f"{result.frames} frames{earlier}, a hand in {result.frames_with_hands}; hands followed: {result.hands}")
    if result.brief_hands:
        say(f"in hands.jsonl alone, for they were seen in fewer than {MIN_TRACK_FRAMES} frames: {result.brief_hands}")
    for remark in result.remarks:
        say(remark)
    if result.codec is not None:
        say(f"overlay: {result.codec}")
    say(f"{folder}/: {', '.join(path.name for path in result.files)}")
