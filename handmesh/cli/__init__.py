"""The `handmesh` command. A subcommand checks its arguments, calls the library and says what happened.

Heavy modules are imported inside the commands: `handmesh --help` answers without loading torch.
A user's mistake ends in one line on standard error and exit code 1; a wrong option in usage help and exit code 2.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

import handmesh
from handmesh.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    label,
    mano,
    predict,
    serve,
    synth,
    train,
    video,
    webcam,
    weights,
)
from handmesh.cli.help import HELP_OPTIONS, Command, Group
from handmesh.cli.shell import INTERRUPTED, console, error_console, say, say_error, silence
from handmesh.errors import HandMeshError

app = typer.Typer(
    help="A photo of a hand goes in; a 3D hand mesh, its joints, its camera and an overlay come out.",
    cls=Group,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)
for section, commands in (
    ("Use a model", (predict.predict, demo.demo, video.video, webcam.webcam, serve.serve)),
    ("Make a model", (train.train, label.label, synth.synth, evaluate.evaluate, export.export)),
    ("This machine", (bench.bench, doctor.doctor)),
):
    for command in commands:
        app.command(cls=Command, rich_help_panel=section)(command)
for section, name, group in (
    ("Make a model", "data", data.app),
    ("Make a model", "weights", weights.app),
    ("This machine", "mano", mano.app),
):
    app.add_typer(group, name=name, cls=Group, rich_help_panel=section)

# What most people come for: the answer to `handmesh` alone.
FIRST_STEPS = (
    ("handmesh demo", "sample photos: a picture and 3D meshes on your disk"),
    ("handmesh predict photo.jpg", "your own photo, or a folder of them"),
    ("handmesh webcam", "live; of a clip: handmesh video clip.mp4"),
    ("handmesh serve", "a web page and an HTTP service"),
    ("handmesh train synthetic_t8", "train a model, with no data but what we draw"),
)


def run() -> None:
    """Entry point: errors that are the user's to mend become one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # a name that the console cannot show is shown escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=error_console)])
    try:
        app(prog_name="handmesh")  # `python -m handmesh` has spaces, which completion cannot be installed for
    except HandMeshError as error:
        say_error(error_console, str(error))
        sys.exit(1)
    except OSError as error:  # a folder that cannot be made, a disk that is full
        say_error(error_console, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer makes it of Ctrl-C, and says nothing
            error_console.print("interrupted")
        raise
    finally:
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            try:
                stream.flush()
            except BrokenPipeError:  # Python would say so once more when it ends, and with an exit code of its own
                silence(descriptor)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"handmesh {handmesh.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        width = max(len(command) for command, _ in FIRST_STEPS)
        for command, what in FIRST_STEPS:
            say(f"{command:{width}}   {what}")
        say("\nAll commands: handmesh --help. More of one: handmesh predict --help.")
