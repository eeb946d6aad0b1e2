"""`handmesh export`: a trained model as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handmesh.cli.shell import JsonOption, ModelOption, check_ignored, say, say_json, words
from handmesh.errors import ConfigError


def export(
    context: typer.Context,
    format: Annotated[
        str,
        typer.Option(
            metavar="onnx|openvino|coreml|torch-export",
            help="What to write.",
            autocompletion=words("onnx", "openvino", "coreml", "torch-export"),
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(metavar="float32|int8", hidden=True),  # a former name of --int8
    ] = "float32",
    int8: Annotated[bool, typer.Option("--int8", help="Multiply in 8 bits; for onnx and openvino.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: the model's name, here.")
    ] = None,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model as one file for another runtime: photos' crops in (uint8 RGB), hands out.

    Normalisation and the hand model are inside. The file is run on synthetic hands and compared with PyTorch, in
    millimetres, before it is yours; one that disagrees is deleted. docs/how_to/export.md has the command for
    TensorRT.

    Examples:
      handmesh export --format onnx

      handmesh export --format openvino --model runs/mine/model.safetensors --out hand.xml

      handmesh export --format onnx --int8
    """
    from handmesh.runtime.export import FORMATS, export_model

    chosen = next((known for known in FORMATS if known == format), None)
    if chosen is None:
        raise ConfigError(f"--format {format!r}: wanted one of {', '.join(FORMATS)}.")
    if precision not in ("float32", "int8"):
        raise ConfigError(f"--precision {precision!r}: wanted float32 or int8.")
    if int8 and precision != "int8":
        check_ignored(context, ["precision"], f"{precision} here, and --int8 says int8: give one of them.")
    exported = export_model(model, chosen, out, precision="int8" if int8 or precision == "int8" else "float32")
    if json:
        say_json(exported)
        return
    say(f"Written: {exported.path}, {exported.megabytes:.1f} MB, {exported.precision}")
    if exported.error_mm is not None:
        say(f"Run on golden crops: at most {exported.error_mm:.2g} mm from PyTorch at any vertex.")
    elif exported.cost_mm is not None:
        kept = f", in float32: {', '.join(exported.kept)}" if exported.kept else ""
        say(
            f"On synthetic hands: PA-MPVPE {exported.cost_mm:+.3f} mm against float32, {exported.distance_mm:.2f} mm "
            f"from its answers; {exported.speed:.2f} of its time on this machine{kept}."
        )
    else:
        say("Its specification was checked. It was not run: Core ML runs on macOS only.")
