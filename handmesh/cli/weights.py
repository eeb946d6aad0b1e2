"""`handmesh weights`: published FastViT weights, and the mean of several models'."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from handmesh.cli.help import Command
from handmesh.cli.shell import JsonOption, check_folder, error_console, say, say_error, say_json
from handmesh.errors import HandMeshError
from handmesh.system.extras import extra

app = typer.Typer(help="Published FastViT weights: add, list. Several runs: average.", no_args_is_help=True)


@app.command("add", cls=Command)
def weights_add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Apple's .pth.tar or timm's .safetensors, .bin or .pth.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="How configs will call them; default: the variant's name.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Where the file came from, for the record.")
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Its licence, if it is not Apple's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put them in the place of others of that name.")] = False,
) -> None:
    """Convert a downloaded checkpoint once, and keep it under a name that training configs can use.

    Examples:
      handmesh weights add fastvit_ma36.pth.tar

      handmesh weights add model.safetensors --name fastvit_t8_distilled --source https://huggingface.co/timm/...
    """
    with extra("train", "`handmesh weights`"):
        from handmesh.model.pretrained import add_backbone_weights

    stored = add_backbone_weights(file, name, source=source, licence=licence, replace=replace)
    say(f"{stored.name}: {stored.variant}, {_form(stored.reparameterized)}, {_classes(stored.num_classes)}")
    say(f"file: {stored.path}")
    say(f"licence: {stored.licence}")


@app.command("list", cls=Command)
def weights_list(json: JsonOption = False) -> None:
    """List the weights that were added, where they came from and under which licence.

    Example:
      handmesh weights list
    """
    with extra("train", "`handmesh weights`"):
        from handmesh.model.pretrained import list_backbone_weights, weights_folder

    found = list_backbone_weights()
    if json:
        say_json([{"error": str(entry)} if isinstance(entry, HandMeshError) else asdict(entry) for entry in found])
        if any(isinstance(entry, HandMeshError) for entry in found):
            raise typer.Exit(1)
        return
    if not found:
        say(f"No weights in {weights_folder()} yet.")
        return
    say(f"{weights_folder()}:")
    damaged = []
    for entry in found:
        if isinstance(entry, HandMeshError):
            damaged.append(entry)
            continue
        say(f"{entry.name}: {entry.variant}, {_form(entry.reparameterized)}, {_classes(entry.num_classes)}")
        say(f"    from {entry.source}, sha256 {entry.source_sha256[:12]}..., added {entry.added[:10]}")
        say(f"    licence: {entry.licence}")
    for error in damaged:
        say_error(error_console, str(error))
    if damaged:
        raise typer.Exit(1)


@app.command("average", cls=Command)
def weights_average(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="Model files, runs' folders or handmesh_t8: all reparameterized, or none, with weights in common.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for model.safetensors and deploy.safetensors.")
    ],
) -> None:
    """Average the weights of several runs that went on from the same model: often better than each of them.

    Or those of a model and of what further training made of it: often better on photos unlike the training's. Score
    the mean before you use it: of unrelated runs it is worthless.

    Example:
      handmesh weights average runs/a runs/b --out runs/mean

      handmesh weights average runs/synthetic_t8_on handmesh_t8 --out runs/mean
    """
    with extra("train", "`handmesh weights`"):
        from handmesh.model.checkpoint import average_models
    from handmesh.model.bundled import find_model
    from handmesh.runtime.graph import write_with_graph

    check_folder(out)
    if len(models) < 2:
        raise typer.BadParameter("give the models of at least two runs.", param_hint="MODELS")
    taken = [path for name in ("model", "deploy") if (path := out / f"{name}.safetensors").exists()]
    if taken:
        raise typer.BadParameter(f"{taken[0]} exists already: nothing is overwritten.", param_hint="--out")
    model, training = average_models(
        [find_model(path / "model.safetensors" if path.is_dir() else path) for path in models]
    )
    write_with_graph(out / "model.safetensors", model, training=training)
    write_with_graph(out / "deploy.safetensors", model.reparameterize(), training=training, half=True)
    say(f"{out / 'model.safetensors'}: the mean of {len(models)} models, as trained (goes into `start_from`)")
    say(f"{out / 'deploy.safetensors'}: the same, reparameterized, float16, for predicting")


def _form(reparameterized: bool) -> str:
    return "reparameterized, for inference only" if reparameterized else "train-time form"


def _classes(count: int) -> str:
    return f"{count} classes" if count else "no classifier"
