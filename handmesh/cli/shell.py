"""What all commands share: the two consoles, progress bars, and how options are read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from handmesh.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from handmesh.detect import Detector
    from handmesh.motion.smoothing import Smoothing
    from handmesh.predict import HandPrediction


class OpenEndedConsole(Console):
    """A console whose reader may leave (`| head -1`): the work goes on, and its exit code says how it went."""

    def on_broken_pipe(self) -> None:
        """Writes into nothing from here on."""
        silence(2 if self.stderr else 1)


def silence(descriptor: int) -> None:
    """What is written to standard output (1) or error (2) from here on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


console = OpenEndedConsole()
error_console = OpenEndedConsole(stderr=True)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
INTERRUPTED = 130  # the exit code, as shells have it
FORMATS = ("glb", "obj", "ply", "stl", "npz", "json", "png", "jpg", "html")


def words(*known: str) -> Callable[[str], list[str]]:
    """For a shell that completes an option's value; where none of these begins so, it offers files."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]  # a name that typer knows


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="A model file; without it, the bundled model.",
        autocompletion=words("handmesh_t8"),
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts, instead of text.")]

FocalOption = Annotated[
    float | None, typer.Option(metavar="PIXELS", help="Focal length in pixels; for positions in space.")
]
FovOption = Annotated[
    float | None, typer.Option(metavar="DEGREES", help="Angle of the longer side in degrees, instead of --focal.")
]

# Of video and webcam, which follow hands.
HandOption = Annotated[
    str,
    typer.Option(
        metavar="right|left|auto",
        help="Which hands there are; auto: found out, for each.",
        autocompletion=words("right", "left", "auto"),
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        metavar="handmesh|none|mediapipe|FILE.onnx",
        help="Who finds hands: ours, nobody (one hand, anywhere), MediaPipe, or a file: OpenCV zoo's palm detector, or "
        "one that `train` wrote.  [default: handmesh]",
        autocompletion=words("handmesh", "none", "mediapipe"),
    ),
]
MaxHandsOption = Annotated[
    int | None,
    typer.Option("--max-hands", metavar="N", min=1, help="At most so many hands.  [default: 2]"),
]
SmoothOption = Annotated[float, typer.Option(metavar="STRENGTH", help="0 not at all, 1 normal, 2 twice as steady.")]
BoxOption = Annotated[
    list[str] | None, typer.Option(metavar="x0,y0,x1,y1", help="Where a hand is at first, in pixels; for each hand.")
]


def say(text: str, *, above: Progress | None = None, to: Console | None = None) -> None:
    """Plain, in one line: no markup, no colours, no line breaks within a path. In a terminal, above a progress bar.

    `to`: standard output, or else.
    """
    to = to or (above.console if above is not None and console.is_terminal else console)
    to.print(text, markup=False, highlight=False, soft_wrap=True)


def say_json(value: Any) -> None:
    """One line of JSON on standard output, where a script reads it; a number that is none is null.

    In ASCII, which every console can show: names of files need not be text, and a reader has all of them.
    """
    from pydantic_core import to_jsonable_python

    console.out(json.dumps(to_jsonable_python(value, inf_nan_mode="null"), separators=(",", ":")), highlight=False)


def say_error(to: Console, message: str) -> None:
    """In one line, but a manual page, which has indented lines, keeps them. Brackets are text here, not markup."""
    text = message if "\n  " in message else " ".join(message.splitlines())
    to.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def progress_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=error_console)


def byte_progress_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=error_console)


def check_folder(path: Path, option: str = "--out") -> None:
    """Raises ConfigError where no folder to write into can be: before the work, not after it."""
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{option} {path}: {place} is a file, wanted a folder.")
            if not os.access(place, os.W_OK):
                raise ConfigError(f"{option} {path}: {place} cannot be written to. Give another folder.")
            return


def check_file(path: Path, option: str = "--out") -> None:
    """Raises ConfigError where a file cannot be written: a folder is there, or what should be its folder cannot be."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: wanted the name of a file.")
    check_folder(path.parent, option)


def parse_list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--box {text!r}: wanted four numbers x0,y0,x1,y1 in pixels, for example 120,80,360,330."
        ) from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ConfigError(f"--box {text!r}: wanted four finite numbers x0,y0,x1,y1 in pixels.")
    if not (x0 < x1 and y0 < y1):
        raise ConfigError(f"--box {text!r}: the box is empty, wanted x0 < x1 and y0 < y1.")
    return x0, y0, x1, y1


def parse_hand(text: str) -> str:
    side = text.strip().lower()
    if side not in ("right", "left", "auto"):
        raise ConfigError(f"--hand {text!r}: wanted right, left or auto.")
    return side


def camera_of(focal: float | None, fov: float | None, size: tuple[int, int]) -> Any:
    """What --focal or --fov say about a picture of a (width, height); None when neither is given."""
    from handmesh.geometry.camera import Intrinsics

    width, height = size
    if focal is not None and fov is not None:
        raise ConfigError("--focal and --fov say the same thing in two ways: give one of them.")
    if focal is not None:
        return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)
    if fov is not None and not 0 < fov < 180:
        raise ConfigError(f"--fov {fov:g}: wanted an angle in degrees between 0 and 180.")
    return None if fov is None else Intrinsics.from_fov(math.radians(fov), width, height)


def summary_of(hand: HandPrediction) -> dict[str, Any]:
    """What a line of JSON says of a hand: its side, how sure of what, and where it is; named as in a .json file."""
    return {
        "handedness": hand.handedness,
        "handedness_source": hand.handedness_source,
        "handedness_score": float(hand.handedness_score),
        "score": float(hand.score),
        **({} if hand.joint_scores is None else {"joint_scores": hand.joint_scores.tolist()}),
        "source": hand.source,
        "box_px": [float(edge) for edge in hand.box],
    }


def parse_smoothing(strength: float) -> Smoothing | None:
    from handmesh.motion.smoothing import Smoothing

    return None if strength == 0 else Smoothing.of_strength(strength)


def check_ignored(context: typer.Context, options: Sequence[str], why: str) -> None:
    """Raises ConfigError that names those of `options` (parameters' names) that were given, and would be ignored."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in options
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        raise ConfigError(f"{' and '.join(given)} {'are' if len(given) > 1 else 'is'} {why}")


def check_finder(detector: str | None, box: list[str] | None, max_hands: int | None) -> None:
    """Raises ConfigError where one of --box, --detector and --max-hands would be ignored."""
    if box and detector is not None:
        raise ConfigError("--box and --detector both say where hands are: give one of them.")
    if max_hands is not None and (box or detector == "none"):
        other = "--box gives one hand for each box" if box else "--detector none takes the picture for one hand's"
        raise ConfigError(f"--max-hands is of hands that are found, and {other}: give one of them.")


def hand_finder(detector: str | None, box: list[str] | None, max_hands: int | None) -> tuple[Detector | None, int]:
    """Who finds hands, and how many there can be. Raises what `check_finder` and `open_detector` raise."""
    from handmesh.detect import GivenBoxes, open_detector
    from handmesh.motion.track import Tracking

    check_finder(detector, box, max_hands)
    if box:
        return GivenBoxes([parse_box(text) for text in box]), len(box)  # of the side that the tracker is told
    most = max_hands or Tracking.max_hands
    found = open_detector(detector or "handmesh", most)
    return found, most if found is not None else 1
