"""`handmesh train`: a run, from its settings to its model."""

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
from typing import TYPE_CHECKING, Annotated

import typer

from handmesh.cli.shell import parse_hand_model, progress_bar, say

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
