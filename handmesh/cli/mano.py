"""`handmesh mano`: the user's own MANO files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handmesh.cli.help import Command
from handmesh.cli.shell import say
from handmesh.errors import ConfigError
from handmesh.system.extras import install_command

app = typer.Typer(help="The user's own MANO files.", no_args_is_help=True)


@app.command("add", cls=Command)
def mano_add(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="MANO_RIGHT.pkl, MANO_LEFT.pkl.")],
    fix_left_shape: Annotated[
        bool,
        typer.Option(
            "--fix-left-shape",
            help="Mend the left hand's shape directions; not for betas that were fitted with the file as published.",
        ),
    ] = False,
) -> None:
    """Check MANO's files without executing anything in them, and keep their arrays where handmesh finds them.

    Get the files at https://mano.is.tue.mpg.de (registration, non-commercial research). Where smplx is installed, our
    hand layer is compared with its own on each file.

    Examples:
      handmesh mano add mano_v1_2/models/MANO_RIGHT.pkl

      handmesh mano add mano_v1_2/models/MANO_RIGHT.pkl mano_v1_2/models/MANO_LEFT.pkl --fix-left-shape
    """
    from handmesh.hand import Handedness
    from handmesh.hand.mano_check import difference_from_smplx
    from handmesh.hand.mano_file import add_mano, handedness_of, read_mano

    # All are read before any is kept; right hands first, since a left one is compared with them.
    sides = {file: handedness_of(read_mano(file)) for file in files}
    for side in Handedness:
        if len(same := [str(file) for file in sides if sides[file] == side]) > 1:
            raise ConfigError(f"{' and '.join(same)} are both {side} hands, of which one can be kept: add one of them.")
    for file in sorted(files, key=lambda name: sides[name] == Handedness.LEFT):
        added = add_mano(file, fix_left_shape=fix_left_shape and sides[file] == Handedness.LEFT)
        kind = "the published file" if added.original else "not byte for byte the published file, but sound"
        say(f"{file}: {added.handedness} hand, {kind}")
        say(f"kept as {added.path} (under MANO's licence; identity {added.arrays.sha256[:12]})")
        if added.left_shape_fixed:
            say("its shape directions were those of the right hand: mended")
        elif added.left_shape_bug:
            say(
                "its shape directions are those of the right hand, as in the published file: betas do not mirror. "
                "--fix-left-shape mends it; leave it for betas that were fitted with that file"
            )
        difference = difference_from_smplx(added.arrays)
        if difference is None:
            say(f"not compared with smplx, which is not installed: {install_command('mano')}")
        else:
            say(f"our layer against smplx's own: vertices differ by at most {1e6 * difference:.2g} micrometres")
    if fix_left_shape and Handedness.LEFT not in sides.values():
        raise ConfigError("--fix-left-shape is for left hands, and none was given. The right one was added.")
