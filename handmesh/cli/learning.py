"""Training data drawn by us, training, and scores: synth, train, evaluate."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handmesh.cli.shell import IMAGE_SUFFIXES, ModelOption, console, parse_hand_model, progress_bar, say
from handmesh.errors import ConfigError

if TYPE_CHECKING:
    from handmesh.config import TrainConfig


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings, for example configs/synthetic_t8.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/ and the config's name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    hand_model: Annotated[
        str | None, typer.Option(metavar="builtin|mano", help="The hand to train; default: the config's model.hand.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long, then score and save: go on with --resume.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Rehearse a run with data.live at toy size, in a temporary folder.")
    ] = False,
) -> None:
    """Train a model; with torchrun in front, in several processes and on several machines.

    Examples:
      handmesh train configs/synthetic_t8.yaml

      handmesh train configs/synthetic_t8.yaml --set steps=100000 --set threads=4 --out runs/long

      handmesh train configs/freihand_ma36.yaml --resume

      torchrun --nproc-per-node 8 -m handmesh train configs/freihand_ma36.yaml

      handmesh train configs/synthetic_t8_gpu.yaml --minutes 9 --resume

    Asked to end (SIGTERM), it scores and saves as when its minutes are over.
    """
    began = time.monotonic()  # what is imported and rendered first takes its share of the minutes
    from handmesh.config import load_config
    from handmesh.learn.train import Progressed
    from handmesh.learn.train import train as run_training

    first = os.environ.get("RANK", "0") == "0"  # torchrun's number of this process: one of them speaks
    logging.getLogger("handmesh").setLevel(logging.INFO if first else logging.WARNING)
    hand = [] if hand_model is None else [f"model.hand={parse_hand_model(hand_model)}"]
    settings = load_config(config, [*(set_ or []), *hand])
    if dry_run:
        _dry_run(settings)
        return
    directory = out or Path("runs") / config.stem
    with progress_bar() as progress, _over_after(minutes, began) as stops:
        rendering = progress.add_task("rendering", total=None, visible=False)
        training = progress.add_task("training", total=None, visible=False)

        def on_render(done: int, total: int) -> None:
            progress.update(rendering, completed=done, total=total, visible=done < total)

        def on_progress(now: Progressed) -> None:
            text = (
                f"loss {now.losses['total']:.3g}: 2D {now.losses['keypoints']:.3f}, "
                f"vertices {1000 * now.losses['vertices']:.1f} mm; {now.images_per_second:.0f} images/s, "
                f"{now.waiting_share:.0%} waiting"
            )
            progress.update(training, completed=now.step, total=now.steps, visible=True, description=text)

        path = run_training(
            settings, directory, resume=resume, on_progress=on_progress, on_render=on_render, stops=stops
        )
    if first:
        say(f"Done: {path}")


@contextmanager
def _over_after(minutes: float | None, began: float) -> Iterator[Callable[[], bool]]:
    """Within, something that says yes once the minutes since `began` are over or the process was asked to end."""
    over = math.inf if minutes is None else began + 60 * minutes
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked) or time.monotonic() >= over
    finally:
        signal.signal(signal.SIGTERM, before)


def _dry_run(settings: TrainConfig) -> None:
    from handmesh.learn.rehearsal import rehearse

    started = time.monotonic()
    with TemporaryDirectory(prefix="handmesh-") as directory:
        done = rehearse(settings, Path(directory))
    say(
        f"Rehearsed in {time.monotonic() - started:.0f} s: {done.step} steps, loss {done.losses[0]:.2f} to "
        f"{done.losses[-1]:.2f}, carried as {done.packed.kind} in {len(done.packed.parts)} parts, "
        f"{done.packed.size / 1e6:.0f} MB"
    )


def synth(
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet into this picture.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a data set (JPEG, masks, labels.jsonl) into this folder.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many hands.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=512, help="Side of the images in pixels.")] = 224,
    labels: Annotated[bool, typer.Option("--labels", help="Draw the labels on the sheet.")] = False,
    backgrounds: Annotated[Path | None, typer.Option(help="Folder of images to use as backgrounds too.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 1,
    like_freihand: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a data set in FreiHAND's own folder layout.")
    ] = None,
    evaluation: Annotated[
        int | None, typer.Option(min=1, help="Test images with --like-freihand; default: an eighth of --count.")
    ] = None,
    hand_model: Annotated[
        str, typer.Option(metavar="builtin|mano", help="The hand that --like-freihand draws.")
    ] = "builtin",
) -> None:
    """Draw synthetic hands, with exact labels.

    Examples:
      handmesh synth --sheet sheet.png --count 40 --seed 1 --labels

      handmesh synth --out hands/ --count 10000 --workers 4

      handmesh synth --like-freihand FreiHAND_synthetic/ --count 400
    """
    if sum(place is not None for place in (sheet, out, like_freihand)) != 1:
        raise ConfigError("Where to draw? Give either --sheet PICTURE, --out FOLDER or --like-freihand FOLDER.")
    if like_freihand is not None:
        if size != 224 or labels or workers != 1:
            raise ConfigError("FreiHAND's images have 224 px: --size, --labels and --workers are not for it.")
        _synth_like_freihand(like_freihand, count, evaluation, seed, backgrounds, hand_model)
        return
    if evaluation is not None or hand_model != "builtin":
        raise ConfigError("--evaluation and --hand-model go with --like-freihand only.")
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--sheet {sheet}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    from handmesh.files.image import encode_image
    from handmesh.hand import builtin_hand
    from handmesh.synth import Backgrounds, SceneRenderer, contact_sheet, sample_generator, write_dataset
    from handmesh.system.atomic import write_atomically

    with progress_bar() as progress:
        task = progress.add_task("rendering", total=count)
        if out is not None:

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            write_dataset(out, count, seed, size=size, workers=workers, progress=report, background_folder=backgrounds)
            return

        def drawn() -> Iterator[Any]:
            renderer = SceneRenderer(builtin_hand(), size=size, backgrounds=Backgrounds(folder=backgrounds))
            for index in range(count):
                yield renderer.render(sample_generator(seed, index))
                progress.update(task, advance=1)

        columns = min(count, max(1, round(math.sqrt(count * 1.6))))
        picture = contact_sheet(drawn(), columns, labels)
    assert sheet is not None
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(sheet, encode_image(picture, sheet.suffix))
    say(f"{count} hands: {sheet}")


def _synth_like_freihand(
    folder: Path, count: int, evaluation: int | None, seed: int, backgrounds: Path | None, hand_model: str
) -> None:
    from handmesh.data.formats.like_freihand import write_like_freihand
    from handmesh.hand.mano_file import load_hand
    from handmesh.synth import Backgrounds

    name = parse_hand_model(hand_model)
    hand = load_hand(name)
    test_images = evaluation or max(1, count // 8)
    with progress_bar() as progress:
        task = progress.add_task("rendering", total=count + test_images)
        write_like_freihand(
            folder,
            count,
            test_images,
            seed,
            hand=hand,
            hand_name=name,
            backgrounds=Backgrounds(seed, folder=backgrounds),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    say(f"{count} hands in 4 versions, {test_images} test images: {folder}")
    say(f"next: handmesh data prepare {folder}")


def evaluate(
    predictions: Annotated[
        Path | None, typer.Option(metavar="pred.json|pred.zip", help="Score this file of FreiHAND's official form.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The test set that belongs to --predictions.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run the model on this test set: FreiHAND, or labels.jsonl.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="frame|metro|box|box-from-test-labels|predict", help="What the network sees.")
    ] = "frame",
    margin: Annotated[
        float | None, typer.Option(min=0.5, help="Crop side over the box's, where boxes are used.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Looks at each hand under protocol predict.")] = 3,
    tta: Annotated[
        str, typer.Option(metavar="none|small|metro|SCALES:DEGREES", help="Average over scales and turns.")
    ] = "none",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of --data.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for scores.json, frames.npz, report.html.")] = Path("evaluation"),
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare with an earlier run's folder, frame by frame.")
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="pred.zip", help="Write the model's answers in the official form.")
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html, too.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that score; default: all cores.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network.")] = None,
) -> None:
    """Score a model, or anybody's prediction file, as FreiHAND's official tool does.

    Examples:
      handmesh evaluate --predictions pred.zip --ground-truth FreiHAND/

      handmesh evaluate --model runs/ma36/model.safetensors --data FreiHAND/ --protocol frame --tta metro

      handmesh synth --out hands/ --count 500 && handmesh evaluate --data hands/ --protocol predict
    """
    from handmesh.evaluate.run import EvaluationRequest, print_evaluation, run_evaluation

    if (predictions is None) == (data is None):
        raise ConfigError("Give either --predictions FILE --ground-truth DIR, or --data DIR with or without --model.")
    if predictions is not None and ground_truth is None:
        raise ConfigError("--predictions needs --ground-truth DIR: the test set that they answer.")
    request = EvaluationRequest(
        predictions=predictions,
        data=ground_truth if data is None else data,
        model=model,
        protocol=protocol,
        margin=margin,
        passes=passes,
        tta=tta,
        limit=limit,
        out=out,
        against=against,
        save_predictions=save_predictions,
        report=report,
        workers=workers,
        threads=threads,
    )
    with progress_bar() as progress:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        result = run_evaluation(request, show)
    print_evaluation(result, console)
