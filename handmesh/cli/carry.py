"""Runs that move between machines: carry pack, carry unpack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handmesh.cli.shell import say

app = typer.Typer(help="Runs that move between machines in small parts: pack, unpack.", no_args_is_help=True)


@app.command()
def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the parts; older parts in it are replaced.")],
    part_mb: Annotated[float, typer.Option(min=0.1, help="Size of a part at most, in megabytes.")] = 15,
    budget_mb: Annotated[
        float | None, typer.Option(min=0.1, help="If the whole run is larger, carry its averaged weights alone.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Carry the averaged weights alone, in float16.")] = False,
) -> None:
    """Cut the newest state of a run into small parts, with a checksum each.

    Example:
      handmesh carry pack runs/synthetic_t8_gpu carried/ --budget-mb 60
    """
    from handmesh.learn.carry import pack as pack_run

    packed = pack_run(run, out, part_mb=part_mb, budget_mb=budget_mb, kind="weights" if weights else None)
    say(
        f"Step {packed.step}, {packed.kind}: {packed.size / 1e6:.1f} MB in {len(packed.parts)} parts and carried.json, "
        f"in {out}/"
    )


@app.command()
def unpack(
    carried: Annotated[Path, typer.Argument(help="Folder with carried.json and all of its parts.")],
    run: Annotated[Path, typer.Argument(help="Folder that the run goes on in.")],
) -> None:
    """Put the parts together again: a folder that `handmesh train --resume` goes on with.

    Example:
      handmesh carry unpack carried/ runs/synthetic_t8_gpu
    """
    from handmesh.learn.carry import unpack as unpack_run

    unpacked = unpack_run(carried, run)
    again = "" if unpacked.kind == "whole" else "; the optimiser begins anew, with another warm-up"
    say(f"Step {unpacked.step} in {run}/: model.safetensors, deploy.safetensors, and the state to go on from{again}")
