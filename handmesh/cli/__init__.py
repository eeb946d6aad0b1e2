"""The `handmesh` command. A subcommand checks its arguments, calls the library and says what happened.

Heavy modules are imported inside the commands: `handmesh --help` answers without loading torch.
A user's mistake ends in one line on standard error and exit code 1; a wrong option in usage help and exit code 2.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from handmesh import __version__
from handmesh.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    mano,
    predict,
    serve,
    synth,
    train,
    video,
    webcam,
    weights,
)
from handmesh.cli.shell import console, error_console, say_error
from handmesh.errors import HandMeshError

app = typer.Typer(
    help="A photo of a hand goes in; a 3D hand mesh, its joints, its camera and an overlay come out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
for command in (
    predict.predict,
    demo.demo,
    video.video,
    webcam.webcam,
    train.train,
    synth.synth,
    evaluate.evaluate,
    export.export,
    bench.bench,
    serve.serve,
    doctor.doctor,
):
    app.command()(command)
for name, group in (("data", data.app), ("mano", mano.app), ("weights", weights.app)):
    app.add_typer(group, name=name)


def run() -> None:
    """Entry point: errors that are the user's to mend become one line and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=error_console)])
    try:
        app()
    except HandMeshError as error:
        say_error(error_console, str(error))
        sys.exit(1)
    except OSError as error:  # a folder that cannot be made, a disk that is full
        say_error(error_console, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        error_console.print("interrupted")
        sys.exit(130)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"handmesh {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
