"""`handmesh predict`: photographs in, hands out."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from handmesh.cli.shell import (
    FORMATS,
    DetectorOption,
    FocalOption,
    FovOption,
    JsonOption,
    ModelOption,
    camera_of,
    check_finder,
    check_folder,
    check_ignored,
    console,
    error_console,
    parse_box,
    parse_hand,
    progress_bar,
    say,
    say_error,
    say_json,
    summary_of,
    words,
)
from handmesh.errors import ConfigError, HandMeshError, ImageError
from handmesh.system.cpus import MAX_THREADS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from handmesh.predict import HandPrediction

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def _formats(incomplete: str) -> list[str]:
    """The last of several, for a shell."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + word for word in FORMATS if word.startswith(last)]


def predict(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|DIR|GLOB", help="Photographs: JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results; made if it is not there.")
    ] = Path("handmesh_out"),
    format: Annotated[
        str,
        typer.Option(metavar=",".join(FORMATS), help="What to write, separated by commas.", autocompletion=_formats),
    ] = "png,glb,json",
    box: Annotated[
        list[str] | None, typer.Option(metavar="x0,y0,x1,y1", help="Where a hand is, in pixels; once for each hand.")
    ] = None,
    hand: Annotated[
        str,
        typer.Option(
            metavar="right|left|auto",
            help="Which hand it is; auto: the model finds out.",
            autocompletion=words("right", "left", "auto"),
        ),
    ] = "auto",
    detector: DetectorOption = None,
    max_hands: Annotated[
        int | None,
        typer.Option("--max-hands", metavar="N", min=1, help="Of the hands found, the N most certain.  [default: 10]"),
    ] = None,
    focal: FocalOption = None,
    fov: FovOption = None,
    passes: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Crops of a hand; where our detector says how it points, one is enough."),
    ] = 3,
    search: Annotated[
        str,
        typer.Option(
            metavar="fast|thorough",
            help="thorough: look at parts of the photo, too, for small hands.",
            autocompletion=words("fast", "thorough"),
        ),
    ] = "fast",
    min_score: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, max=1, help="Leave out lower scores; not of a --box.  [default: 0.5]"),
    ] = None,
    skeleton: Annotated[bool, typer.Option("--skeleton", help="Draw bones instead of the mesh in pictures.")] = False,
    renderer: Annotated[
        str,
        typer.Option(
            metavar="own|pytorch3d", help="Who draws meshes in pictures.", autocompletion=words("own", "pytorch3d")
        ),
    ] = "own",
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out images whose results are all there: goes on with a run.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="i/n", help="Only the i-th of n parts of the images, counted from 1.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_THREADS,
            help="In all: for photos side by side, or for one alone; default: the cores.",
        ),
    ] = None,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Find the hands in photographs and write meshes, joints and overlays.

    Every hand is found, with its side and a score; a photo without one has an empty answer. --box says where hands are,
    and is trusted.

    A file that cannot be read is reported and the others go on; the exit code is 0 only when all of them worked.
    With --json standard output has a line of JSON for each photo: its hands and its files, or its error.

    Examples:
      handmesh predict photo.jpg

      handmesh predict photos/ --out results --format glb,png --skip-existing

      handmesh predict party.jpg --box 120,80,360,330 --box 500,90,700,300 --hand left
    """
    formats = _parse_formats(format)
    check_folder(out)
    boxes = [parse_box(text) for text in box] if box else None
    side = parse_hand(hand)
    if search not in ("fast", "thorough"):
        raise ConfigError(f"--search {search!r}: wanted fast or thorough.")
    check_finder(detector, box, max_hands)
    if boxes and min_score is not None:
        raise ConfigError("--min-score is of hands that are found; the hand in a --box always comes: give one of them.")
    if search == "thorough" and boxes:
        raise ConfigError("--search thorough looks for hands, and --box says where they are: give one of them.")
    camera_of(focal, fov, (1, 1))  # refused here, once, and not for every photo
    if renderer not in ("own", "pytorch3d") or (skeleton and renderer != "own"):
        raise ConfigError(f"--renderer {renderer}: wanted own or pytorch3d, and it draws meshes, not --skeleton.")
    if not {"png", "jpg"} & set(formats):
        why = f"of pictures, and --format {format} has neither png nor jpg: give one of them."
        check_ignored(context, ["skeleton", "renderer"], why)
    if renderer == "pytorch3d":
        from handmesh.draw.pytorch3d import check_installed

        check_installed()
    remarks: list[str] = []
    jobs = list(_shard(_plan(images, out, formats, remarks), shard))
    for remark in remarks:
        say(remark, to=error_console if json else console)
    if skip_existing:
        jobs = [job for job in jobs if not (job.is_named_alone and all(path.exists() for path in job.targets))]
    if not jobs:
        why = "all results are there" if skip_existing else f"--shard {shard} of so few photos has none"
        say(f"Nothing to do: {why}.", to=error_console if json else console)
        return

    from handmesh.detect import HandDetector, open_detector
    from handmesh.files.image import encode_image, open_photo
    from handmesh.predict import MAX_HANDS, MIN_SCORE, drawable_meshes, load_predictor, overlay_hands, save_hands
    from handmesh.system.atomic import write_atomically
    from handmesh.system.cpus import default_threads

    lowest = MIN_SCORE if min_score is None else min_score
    most = max_hands or MAX_HANDS
    # One photo has all threads; of many, each has one: threads that share a photo wait for each other.
    threads = threads or default_threads()
    workers = min(threads, len(jobs))
    each = threads if workers == 1 else 1
    finder = open_detector(detector or "handmesh", most, threads=each)
    if search == "thorough" and not isinstance(finder, HandDetector):
        raise ConfigError(f"--search thorough needs our own detector, not --detector {detector}: give one of them.")
    predictor = load_predictor(model, detector=finder, passes=passes, threads=each)

    def picture(image: NDArray[np.uint8], hands: Sequence[HandPrediction]) -> NDArray[np.uint8]:
        if renderer == "pytorch3d":
            from handmesh.draw import pytorch3d, render

            return render.overlay_meshes(image, drawable_meshes(hands), draw_box=pytorch3d.draw_box)
        return overlay_hands(image, hands, skeleton=skeleton)

    def predict_one(job: _Job) -> tuple[bool, str, dict[str, Any]]:
        """Whether it worked, and which hands there are or what went wrong: for people, and for scripts."""
        path, targets = job.photo, job.targets
        try:
            photo = open_photo(path)
            hands = predictor(
                photo,
                boxes=boxes,
                handedness=side,
                intrinsics=camera_of(focal, fov, photo.size),
                search="thorough" if search == "thorough" else "fast",
                min_score=lowest,
                max_hands=most,
            )
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.suffix in (".png", ".jpg"):  # a large photo is decoded in full only for a picture of it
                    write_atomically(target, encode_image(picture(photo.image, hands), target.suffix))
                else:
                    save_hands(target, hands)
        except (HandMeshError, OSError) as error:
            text = str(error) if isinstance(error, HandMeshError) else f"{path}: {error}"
            return False, text, {"image": path, "error": text}
        record = {"image": path, "hands": [summary_of(hand) for hand in hands], "files": targets}
        return True, f"{path}: {_in_words(hands)}", record

    failed = 0
    with progress_bar() as progress:
        answers = side_by_side(predict_one, jobs, workers)
        for worked, text, record in progress.track(answers, total=len(jobs), description="predicting"):
            failed += not worked
            if json:
                say_json(record)
            elif worked:
                say(text, above=progress)
            else:
                say_error(progress.console, text)
    if not json:
        say(f"{len(jobs) - failed} of {len(jobs)} images done: {', '.join(formats)} in {out}/")
    if failed:
        raise typer.Exit(1)


def _in_words(hands: Sequence[HandPrediction]) -> str:
    """As in "2 hands: right 0.98, left 0.91"."""
    if not hands:
        return "no hand"
    found = ", ".join(f"{hand.handedness} {hand.score:.2f}" for hand in hands)
    return f"{len(hands)} hand{'s' if len(hands) > 1 else ''}: {found}"


def side_by_side(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int) -> Iterator[Answer]:
    """The answers, in the order of the jobs, from `workers` threads that are a few jobs ahead and no more.

    An error that `work` raises, or Ctrl-C, ends it: jobs that have not begun are dropped, those in work are finished.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="handmesh-photo") as pool:
        waiting: deque[Future[Answer]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _parse_formats(text: str) -> list[str]:
    formats = [part.strip().lower().removeprefix(".") for part in text.split(",") if part.strip()]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"--format {text!r}: {', '.join(unknown) or 'nothing'} is not one of {', '.join(FORMATS)}.")
    return list(dict.fromkeys(formats))


class _Job(NamedTuple):
    photo: Path
    targets: list[Path]  # its results
    is_named_alone: bool  # else the name of its results depends on which other photos there are, and their order


def _plan(arguments: Sequence[str], out: Path, formats: Sequence[str], remarks: list[str]) -> list[_Job]:
    """All photos; results never collide, whatever the photos are called."""
    from handmesh.files.image import PHOTO_SUFFIXES, natural_order, photos_in

    images: list[tuple[Path, Path]] = []  # (image, where its results go, without suffix)
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found, left_out = photos_in(path, recursive=True)
            if out.resolve() not in (path.resolve(), *path.resolve().parents):
                # The pictures of an earlier run are results, not photographs.
                found = [file for file in found if out.resolve() not in Path(os.path.realpath(file)).parents]
            if not found:
                raise ImageError(f"No images in {path}: wanted files that end in {', '.join(PHOTO_SUFFIXES)}.")
            if left_out:
                remarks.append(f"{path}: {left_out}")
            images += [(file, file.relative_to(path).with_suffix("")) for file in found]
        elif path.is_file() or not glob.has_magic(argument):
            images.append((path, Path(path.name if path.stem == "." else path.stem)))  # "..jpg"
        else:
            found = [match for match in map(Path, glob.glob(argument, recursive=True)) if match.is_file()]
            matches = sorted(found, key=lambda match: [natural_order(part) for part in match.parts])
            if not matches:
                raise ImageError(f"Nothing matches {argument}.")
            images += [(match, Path(match.stem)) for match in matches]
    images = list(dict.fromkeys(images))
    named = Counter(str(stem).casefold() for _, stem in images)
    taken: set[str] = set()  # in one case: some systems' files are the same whatever their names' letters
    plan = []
    for image, stem in images:
        free, number = stem, 1
        while str(free).casefold() in taken:  # the same name in two places, or with two suffixes
            number += 1
            free = stem.with_name(f"{stem.name}_{number}")
        taken.add(str(free).casefold())
        targets = [out / free.with_name(f"{free.name}.{format}") for format in formats]
        plan.append(_Job(image, targets, free == stem and named[str(stem).casefold()] == 1))
    photos = {os.path.realpath(image) for image, _ in images}  # Path.resolve raises for a link to itself
    for job in plan:
        for target in job.targets:
            if os.path.realpath(target) in photos:
                raise ConfigError(f"The result {target} would replace a photograph: give another folder as --out.")
    return plan


def _shard(jobs: list[_Job], text: str | None) -> list[_Job]:
    if text is None:
        return jobs
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard {text!r}: wanted i/n with i from 1 to n, for example 2/4.")
    return jobs[int(part) - 1 :: int(parts)]
