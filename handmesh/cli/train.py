"""`handmesh train`: a run, from its settings to its model."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handmesh.cli.shell import check_folder, progress_bar, say
from handmesh.errors import ConfigError

if TYPE_CHECKING:
    from handmesh.learn.train import Progressed


def _shipped(incomplete: str) -> list[str]:
    from handmesh.config.load import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file of settings, or the name of a shipped one, such as synthetic_t8.",
            autocompletion=_shipped,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; default: runs/ and the config's name."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    tracker: Annotated[
        str | None, typer.Option(metavar="wandb|mlflow", help="Send the run's figures there, too, if it is installed.")
    ] = None,
    hand_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The hand to train (`doctor` lists them); default: the config's.")
    ] = None,
) -> None:
    """Train a model; with torchrun in front, in several processes and on several machines.

    Examples:
      handmesh train synthetic_t8

      handmesh train synthetic_t8 --set steps=100000 --set threads=4 --out runs/long

      handmesh train freihand_ma36 --resume

      torchrun --nproc-per-node 8 -m handmesh train freihand_ma36

    A config with the key `detector` trains the detector of hands (detector_t8).

    Asked to end (SIGTERM), it finishes its step, scores, saves and leaves: go on with --resume.
    """
    from handmesh.config.detector import DetectorConfig
    from handmesh.config.load import load_any_config
    from handmesh.system.extras import extra

    if out is not None:
        check_folder(out)
    hand = [] if hand_model is None else [f"model.hand={hand_model}"]
    settings = load_any_config(config, [*(set_ or []), *hand])  # first: a slip in it is a slip, torch or not
    with extra("train", "`handmesh train`"):
        from handmesh.learn.detector import train_detector
        from handmesh.learn.train import train as run_training

    first = os.environ.get("RANK", "0") == "0"  # torchrun's number of this process: one of them speaks
    logging.getLogger("handmesh").setLevel(logging.INFO if first else logging.WARNING)
    directory = out or Path("runs") / Path(config).stem
    with progress_bar() as progress, _until_sigterm() as should_stop:
        rendering = progress.add_task("rendering", total=None, visible=False)
        training = progress.add_task("training", total=None, visible=False)

        def on_render(done: int, total: int) -> None:
            progress.update(rendering, completed=done, total=total, visible=done < total)

        def on_progress(now: Progressed) -> None:
            progress.update(training, completed=now.step, total=now.steps, visible=True, description=_in_words(now))

        def on_detector(step: int, steps: int, losses: dict[str, float], speed: float) -> None:
            found = f"loss {losses['total']:.3g}: center {losses['center']:.2f}, box {losses['box']:.2f}"
            text = f"{found}; {speed:.0f} pictures/s"
            progress.update(training, completed=step, total=steps, visible=True, description=text)

        if isinstance(settings, DetectorConfig):
            if tracker is not None:
                raise ConfigError("--tracker goes with runs that train hands, and this one trains a detector.")
            path = train_detector(
                settings,
                directory,
                resume=resume,
                on_progress=on_detector,
                on_render=on_render,
                should_stop=should_stop,
            )
        else:
            path = run_training(
                settings,
                directory,
                resume=resume,
                on_progress=on_progress,
                on_render=on_render,
                should_stop=should_stop,
                tracker=tracker,
            )
    if first:
        say(f"Done: {path}")


def _in_words(now: Progressed) -> str:
    """Distances, with a dash where nothing is labelled that they could be measured to."""
    keypoints = "-" if now.keypoint_px is None else f"{now.keypoint_px:.1f} px"
    vertices = "-" if now.vertex_mm is None else f"{now.vertex_mm:.1f} mm"
    return (
        f"loss {now.losses['total']:.3g}: keypoints {keypoints}, vertices {vertices}; "
        f"{now.images_per_second:.0f} images/s, {now.data_wait_fraction:.0%} waiting"
    )


@contextmanager
def _until_sigterm() -> Iterator[Callable[[], bool]]:
    """Within, something that says yes once the process was asked to end, which no longer ends it."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
