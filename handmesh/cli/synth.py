"""`handmesh synth`: synthetic hands with exact labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from handmesh.cli.shell import IMAGE_SUFFIXES, check_file, check_folder, progress_bar, say
from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS


def synth(
    sheet: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw a contact sheet into this picture.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Write a data set (JPEG, masks, labels.jsonl) into this folder."
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many hands.")] = 40,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(metavar="N", min=32, max=512, help="Side of the images in pixels.")] = 224,
    labels: Annotated[bool, typer.Option("--labels", help="Draw the labels on the sheet.")] = False,
    backgrounds: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of images to use as backgrounds too.")
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_THREADS, help="Processes that render.")] = 1,
    like_freihand: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a data set in FreiHAND's own folder layout.")
    ] = None,
    evaluation: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Test images with --like-freihand; default: an eighth of --count."),
    ] = None,
    hand_model: Annotated[
        str, typer.Option(metavar="NAME", help="The hand that --like-freihand draws; `doctor` lists hands.")
    ] = "builtin",
) -> None:
    """Draw synthetic hands, with exact labels.

    Examples:
      handmesh synth --sheet sheet.png --count 40 --seed 1 --labels

      handmesh synth --out hands/ --count 10000 --workers 4

      handmesh synth --like-freihand FreiHAND_synthetic/ --count 400
    """
    if sum(place is not None for place in (sheet, out, like_freihand)) != 1:
        raise ConfigError("Where to draw? Give either --sheet PICTURE, --out DIR or --like-freihand DIR.")
    if out is not None:
        check_folder(out)
    if like_freihand is not None:
        check_folder(like_freihand, "--like-freihand")
        if size != 224 or labels or workers != 1:
            raise ConfigError("FreiHAND's images have 224 px: --size, --labels and --workers are not for it.")
        _synth_like_freihand(like_freihand, count, evaluation, seed, backgrounds, hand_model)
        return
    if evaluation is not None or hand_model != "builtin":
        raise ConfigError("--evaluation and --hand-model go with --like-freihand only.")
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--sheet {sheet}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    if sheet is not None:
        check_file(sheet, "--sheet")
    if out is not None and labels:
        raise ConfigError("--labels draws on a --sheet; a data set has its labels in a file.")
    if sheet is not None and workers != 1:
        raise ConfigError("--workers is for --out: a sheet is drawn by one process.")
    from handmesh.files.image import MAX_PIXELS

    if sheet is not None and count * size**2 > MAX_PIXELS:
        raise ConfigError(
            f"A sheet of {count:,} hands of {size} px has {count * size**2:,} pixels; the limit is {MAX_PIXELS:,}. "
            "Give a smaller --count or --size, or --out DIR."
        )
    from handmesh.draw.sheet import contact_sheet
    from handmesh.draw.skeleton import draw_skeleton
    from handmesh.files.image import encode_image
    from handmesh.hand import builtin_hand
    from handmesh.synth import Backgrounds, SceneRenderer, sample_generator, write_dataset
    from handmesh.system.atomic import write_atomically

    with progress_bar() as progress:
        task = progress.add_task("rendering", total=count)
        if out is not None:

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            write_dataset(out, count, seed, size=size, workers=workers, progress=report, background_folder=backgrounds)
            say(f"{count} hands: {out}")
            return

        def drawn() -> Iterator[Any]:
            renderer = SceneRenderer(builtin_hand(), size=size, backgrounds=Backgrounds(folder=backgrounds))
            for index in range(count):
                sample = renderer.render(sample_generator(seed, index))
                marked = draw_skeleton(sample.image, sample.keypoints, occluded=~sample.visible)
                yield marked if labels else sample.image
                progress.update(task, advance=1)

        columns = min(count, max(1, round(math.sqrt(count * 1.6))))
        picture = contact_sheet(drawn(), columns)
    assert sheet is not None
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(sheet, encode_image(picture, sheet.suffix))
    say(f"{count} hands: {sheet}")


def _synth_like_freihand(
    folder: Path, count: int, evaluation: int | None, seed: int, backgrounds: Path | None, hand_model: str
) -> None:
    from handmesh.data.formats.like_freihand import write_like_freihand
    from handmesh.hand.models import load_hand
    from handmesh.synth import Backgrounds

    hand = load_hand(hand_model)
    test_images = evaluation or max(1, count // 8)
    with progress_bar() as progress:
        task = progress.add_task("rendering", total=count + test_images)
        write_like_freihand(
            folder,
            count,
            test_images,
            seed,
            hand=hand,
            hand_name=hand_model,
            backgrounds=Backgrounds(seed, folder=backgrounds),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    say(f"{count} hands in 4 versions, {test_images} test images: {folder}")
    say(f"next: handmesh data prepare {folder}")
