"""`handmesh label`: labels for your own photographs, for `handmesh train`."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handmesh.cli.shell import (
    IMAGE_SUFFIXES,
    INTERRUPTED,
    JsonOption,
    ModelOption,
    check_file,
    check_folder,
    check_ignored,
    error_console,
    progress_bar,
    say,
    say_json,
)
from handmesh.errors import ConfigError, DataError, ImageError

if TYPE_CHECKING:
    from handmesh.label import LabelledHand, SeenHand

    Seen = Sequence[SeenHand]  # in one photograph

_DROPPED_SHOWN = 10


def label(
    context: typer.Context,
    photos: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|DIR|JSONL", help="Photographs, or labels that have keypoints.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="JSONL", help="The labels.")] = Path("labels.jsonl"),
    dropped: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="Also list what was left out, and why, in this file.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PICTURE", help="Draw some of the labels to look at.")] = None,
    cut_out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also cut hands out, into this folder; training changes their backgrounds."),
    ] = None,
    keypoints_by: Annotated[
        str,
        typer.Option(
            metavar="handmesh|freihand|mediapipe",
            help="Whose definition a JSONL's keypoints follow: where bones meet, MANO's, or MediaPipe's.",
        ),
    ] = "handmesh",
    max_hands: Annotated[int, typer.Option(metavar="N", min=1, help="Hands in a photograph at most.")] = 4,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Make training labels for photographs: 2D keypoints, and a hand that fits them.

    MediaPipe (the extra "detect") says where the joints are, in the photograph and in its mirror image; a
    JSONL file of your own keypoints takes its place. The model's own answer, fitted to them, gives pose and shape. What
    no hand fits, and what is seen elsewhere in the mirror image, is left out; of a fair fit the keypoints alone stay.

    Ctrl-C ends it: what is labelled by then is in labels.interrupted.jsonl, and the same command begins anew.

    Examples:
      handmesh label photos/ --out photos/labels.jsonl --sheet sheet.jpg

      handmesh label keypoints.jsonl --out labels.jsonl

      handmesh train finetune --set data.photos.0.path=photos/labels.jsonl
    """
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--sheet {sheet}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    given = [path for path in photos if path.suffix.lower() == ".jsonl"]
    if given and len(given) < len(photos):
        raise ConfigError("Photographs and JSONL files at once: label the ones first, then the others.")
    if given:
        check_ignored(context, ["max_hands"], "of photographs, and a JSONL's hands are its own: leave it out.")
    else:
        why = "of a JSONL's keypoints, and those of photographs are MediaPipe's: leave it out."
        check_ignored(context, ["keypoints_by"], why)
    outputs = {"--out": out, "--dropped": dropped, "--sheet": sheet}
    for option, path in outputs.items():
        if path is not None:
            check_file(path, option)
    if cut_out is not None:
        check_folder(cut_out, "--cut-out")
    _check_places(outputs, photos)
    _check_places({"--out": _interrupted(out)}, photos)
    import numpy as np

    from handmesh.draw.sheet import contact_sheet
    from handmesh.files.image import encode_image
    from handmesh.label import alpha_of, draw_label, keypoint_definition, label_hands
    from handmesh.predict import load_predictor
    from handmesh.system.atomic import write_atomically, written_atomically

    if cut_out is not None:
        cut_out.mkdir(parents=True, exist_ok=True)
    for path in (out, dropped, sheet):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    predictor = load_predictor(model, threads=1)
    definition = keypoint_definition(keypoints_by if given else "mediapipe", predictor.engine.hand)
    # Before the first hand is labelled: what is wrong at the end would be known, and lose all, when the rest was done.
    seen, read = _hands_in_labels(given) if given else _hands_in_photos(photos, max_hands)
    _check_places(outputs, read)
    folders = [path for path in photos if path.is_dir()]
    linked = {photo.parent for photo in read if any(photo.is_relative_to(folder) for folder in folders)}
    _check_apart({"--sheet": sheet, "--cut-out": cut_out}, [*folders, *sorted(linked)])
    labels: list[LabelledHand] = []
    alphas: dict[int, Path] = {}
    done = 0
    with progress_bar() as progress, _until_interrupted() as should_stop:
        task = progress.add_task("labelling", total=len(read))

        def hands() -> Iterator[tuple[Path, SeenHand]]:
            nonlocal done
            for photo, in_photo in seen:
                yield from ((photo, hand) for hand in in_photo)
                done += 1
                progress.update(task, completed=done)
                if should_stop():
                    return

        for labelled in label_hands(hands(), predictor, definition):
            if cut_out is not None and labelled.record is not None and not labelled.reason:
                alpha = alpha_of(labelled, predictor.engine.hand)
                if alpha is not None:
                    alphas[len(labels)] = cut_out / f"{labelled.image.stem}_{len(labels):06d}.png"
                    write_atomically(alphas[len(labels)], encode_image(np.dstack([alpha] * 3), ".png"))
            labels.append(labelled)
    interrupted = done < len(read)
    if interrupted:  # beside what an earlier run may have finished
        out, dropped, sheet = _interrupted(out), dropped and _interrupted(dropped), None
        kind = "hands" if given else "photographs"
        say(f"{done} of {len(read)} {kind} are done; the same command begins anew", to=error_console)
        if not labels:
            raise typer.Exit(INTERRUPTED)
    if not labels:
        raise DataError("No hand was found in these photographs: nothing to label.")
    for number, path in alphas.items():
        record = {**(labels[number].record or {}), "alpha": _relative(path, out)}
        labels[number] = labels[number]._replace(record=record)
    kept = [labelled for labelled in labels if labelled.record is not None]
    left_out = [labelled for labelled in labels if labelled.record is None]
    if kept:
        with written_atomically(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for labelled in kept:
                file.write(dumps({**(labelled.record or {}), "image": _relative(labelled.image, out)}) + "\n")
    if dropped is not None:
        lines = [dumps({"image": str(one.image), "reason": one.reason}) for one in left_out]
        write_atomically(dropped, "".join(line + "\n" for line in lines).encode())
    counts = Counter(_kind(labelled) for labelled in labels)
    if not json:
        for labelled in left_out[:_DROPPED_SHOWN]:
            say(f"left out: {labelled.image}: {labelled.reason}")
        if len(left_out) > _DROPPED_SHOWN:
            say(f"... and {len(left_out) - _DROPPED_SHOWN} more: --dropped FILE lists them all.")
        for reason, count in counts.most_common():
            say(f"{count:6}  {reason}")
    if not kept:
        raise DataError(f"No hand became a label: {out} is not written.")
    if sheet is not None:
        chosen = kept[:: max(1, len(kept) // 48)][:48]
        picture = contact_sheet((draw_label(one, predictor.engine.hand) for one in chosen), columns=4)
        write_atomically(sheet, encode_image(picture, sheet.suffix))
    if json:
        say_json({"labels": out, "hands": counts, "cut_out": len(alphas), "sheet": sheet, "dropped": dropped})
    else:
        if sheet is not None:
            say(f"{sheet}")
        say(f"{len(kept)} hands in {out}" + (f", {len(alphas)} of them cut out in {cut_out}" if cut_out else ""))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Within, something that says yes once Ctrl-C was pressed. Pressed again, it ends the command as ever.

    Where it is ignored, as of a command that a script left in the background, it stays so.
    """
    asked = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    if (before := signal.getsignal(signal.SIGINT)) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(path: Path) -> Path:
    return path.with_stem(f"{path.stem}.interrupted")


def _check_places(outputs: Mapping[str, Path | None], read: Sequence[Path]) -> None:
    """No output, by option, lies where another does or what is to be read. Raises ConfigError."""
    taken = {os.path.realpath(path): "what is to be read" for path in read if path.is_file()}
    for option, path in outputs.items():
        if path is not None:
            if (place := os.path.realpath(path)) in taken:
                raise ConfigError(f"{option} {path} is {taken[place]}: it would be lost. Give another name.")
            taken[place] = f"the file of {option}, too"


def _kind(labelled: LabelledHand) -> str:
    if labelled.record is None:
        return "left out"
    return "keypoints alone" if labelled.reason else "complete labels"


def _relative(image: Path, out: Path) -> str:
    try:
        return Path(os.path.relpath(image, out.parent)).as_posix()
    except ValueError:  # another drive
        return str(image.resolve())


def _check_apart(outputs: Mapping[str, Path | None], folders: Sequence[Path]) -> None:
    """Pictures that are written lie in no folder of photographs: the next run would read them. Raises ConfigError."""
    for option, path in outputs.items():
        for folder in folders:
            if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ConfigError(
                    f"{option} {path} is in {folder}, and would be taken for photographs the next time. Give a place "
                    "outside."
                )


def _hands_in_photos(paths: list[Path], max_hands: int) -> tuple[Iterator[tuple[Path, Seen]], list[Path]]:
    """Each photograph with its hands, and all photographs."""
    from handmesh.files.image import photos_in, read_image

    photos: list[Path] = []
    for path in paths:
        found, left_out = photos_in(path, recursive=True) if path.is_dir() else ([path], "")
        if left_out:
            say(f"{path}: {left_out}", to=error_console)
        if not found:
            raise ImageError(f"No images in {path}.")
        photos += found

    def seen() -> Iterator[tuple[Path, Seen]]:
        from handmesh.detect.mediapipe import MediaPipeHands
        from handmesh.label import UNSEEN, seen_twice

        teacher = MediaPipeHands(max_hands)
        for photo in photos:
            try:
                image = read_image(photo)
            except ImageError:
                yield photo, [UNSEEN]  # left out with the others, and with that reason
                continue
            yield photo, seen_twice(image, teacher.landmarks)

    return seen(), photos


def _hands_in_labels(paths: list[Path]) -> tuple[Iterator[tuple[Path, Seen]], list[Path]]:
    """Each with its photograph, and all photographs; every line was read."""
    import numpy as np

    from handmesh.data.formats import open_photos
    from handmesh.label import UNSEEN, SeenHand

    photos, hands = [], []
    for data in map(open_photos, paths):
        for index in range(len(data)):
            labels, seen = data.labels(index), UNSEEN
            if labels.hand.present and (found := labels.keypoints_or_projection()) is not None:
                points, known = found
                seen = SeenHand(np.where(known[:, None], points, np.nan), labels.handedness)
            photos.append(data.image_path(index))
            hands.append([seen])
    return zip(photos, hands, strict=True), photos
