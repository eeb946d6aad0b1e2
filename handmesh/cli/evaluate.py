"""`handmesh evaluate`: FreiHAND's official scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handmesh.cli.shell import JsonOption, ModelOption, check_file, check_folder, console, progress_bar
from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS


def evaluate(
    predictions: Annotated[
        Path | None, typer.Option(metavar="pred.json|pred.zip", help="Score this file of FreiHAND's official form.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The test set that belongs to --predictions.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="Run the model on this test set: FreiHAND, or a JSONL file.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="PROTOCOL",
            help="What the network sees: frame, metro, box, frame-then-box, metro-then-box, box-from-test-labels or "
            "predict; default: what the model was trained on, else frame.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(metavar="X", min=0.5, help="Crop side over the box's, where boxes are used.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Crops of each hand under --crop predict.  [default: 3]")
    ] = None,
    tta: Annotated[
        str, typer.Option(metavar="none|small|metro|SCALES:DEGREES", help="Average over scales and rotations.")
    ] = "none",
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first images of --data.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for scores.json, frames.npz, report.html.")
    ] = Path("evaluation"),
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Compare with an earlier run's folder, frame by frame; repeatable."),
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="pred.zip", help="Write the model's answers in the official form.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html, too; without, an earlier run's goes.")
    ] = True,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=MAX_THREADS, help="Of the network and of scoring; default: the cores."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score a model, or anybody's prediction file, as FreiHAND's official tool does.

    Examples:
      handmesh evaluate --predictions pred.zip --ground-truth FreiHAND/

      handmesh evaluate --model runs/ma36/model.safetensors --data FreiHAND/ --crop frame --tta metro

      handmesh synth --out hands/ --count 500 && handmesh evaluate --data hands/ --crop predict
    """
    from handmesh.evaluate.run import EvaluationRequest, print_evaluation, run_evaluation

    if (predictions is None) == (data is None):
        raise ConfigError("Give either --predictions FILE --ground-truth DIR, or --data DIR|FILE (and --model).")
    if predictions is not None and ground_truth is None:
        raise ConfigError("--predictions needs --ground-truth DIR: the test set that they answer.")
    if data is not None and ground_truth is not None:
        raise ConfigError("--ground-truth is what --predictions are compared with; --data is a test set by itself.")
    check_folder(out)
    if save_predictions is not None:
        check_file(save_predictions, "--save-predictions")
    request = EvaluationRequest(
        predictions=predictions,
        data=ground_truth if data is None else data,
        model=model,
        protocol=crop,
        margin=margin,
        passes=passes,
        tta=tta,
        limit=count,
        out=out,
        against=tuple(against or ()),
        save_predictions=save_predictions,
        report=report,
        workers=threads,
        threads=threads,
    )
    with progress_bar() as progress:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        result = run_evaluation(request, show)
    if json:  # the file of scores itself
        console.out((out / "scores.json").read_text(encoding="utf-8"), highlight=False, end="")
    else:
        print_evaluation(result, console)
