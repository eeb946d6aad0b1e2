"""`handmesh data`: data sets to train and score with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from handmesh.cli.help import Command
from handmesh.cli.shell import (
    IMAGE_SUFFIXES,
    JsonOption,
    byte_progress_bar,
    check_file,
    check_folder,
    check_ignored,
    console,
    progress_bar,
    say,
    say_json,
)
from handmesh.errors import ConfigError

app = typer.Typer(help="Data sets to train and score with: prepare, check, show.", no_args_is_help=True)


@app.command("prepare", cls=Command)
def data_prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="FreiHAND's zips, or the folder they unpack to.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the result; default: DIR/prepared.")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Join the JPEG files into one; from zips that always happens.")
    ] = False,
) -> None:
    """Turn FreiHAND's JSON files into memory maps, once. Interrupted, it goes on where it was.

    Examples:
      handmesh data prepare FreiHAND/

      handmesh data prepare FreiHAND/ --out /fast/disk/freihand --pack
    """
    if out is not None:
        check_folder(out)
    from handmesh.data.formats.freihand import FreiHand, available_splits, prepare

    with byte_progress_bar() as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        result = prepare(folder, out, pack=pack, progress=report)
    for split in available_splits(result):
        data = FreiHand(result, split)
        say(f"{split}: {data.annotation_count} annotations, {len(data)} images ({', '.join(data.versions)})")
    say(f"Ready: {result}")
    say(f"next: handmesh data check {result}")


@app.command("check", cls=Command)
def data_check(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="Prepared FreiHAND, a JSONL file, or a published set.")
    ],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures to decode, spread over the set.")] = 200,
    everything: Annotated[bool, typer.Option("--all", help="Decode every picture.")] = False,
    json: JsonOption = False,
) -> None:
    """Check that a data set is what it claims to be: a table of what was wanted and what was found.

    The exit code is 0 only when nothing failed.

    Examples:
      handmesh data check FreiHAND/

      handmesh data check photos/labels.jsonl --all

      handmesh data check HO3D_v3/train
    """
    from handmesh.data.check import check

    if everything:
        check_ignored(context, ["count"], "some of the pictures, and --all is all of them: give one of them.")

    with progress_bar() as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        rows = check(path, None if everything else count, report)
    failed = sum(row.passed is False for row in rows)
    if json:
        say_json({"path": str(path), "claims": rows})
        if failed:
            raise typer.Exit(1)
        return
    table = Table(title=Text(str(path)))
    for title in ("", "claim", "wanted", "found"):
        table.add_column(title, overflow="fold")
    for row in rows:
        mark = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "[dim]-[/]"}[row.passed]
        table.add_row(mark, *map(escape, (row.subject, row.wanted, row.found)))
    console.print(table)
    unchecked = sum(row.passed is None for row in rows)
    say(f"{len(rows) - failed - unchecked} passed, {failed} failed, {unchecked} without a verdict")
    if failed:
        raise typer.Exit(1)


@app.command("show", cls=Command)
def data_show(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="Prepared FreiHAND, a JSONL file, or a published set.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PICTURE", help="The picture.")] = Path(
        "handmesh_out/data.jpg"
    ),
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many samples.")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Which samples: the same seed, the same ones.")] = 0,
    split: Annotated[str | None, typer.Option(metavar="training|evaluation", help="FreiHAND's part.")] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="frame|metro|box", help="How to crop; default: frame, or box for a JSONL.")
    ] = None,
    mesh: Annotated[bool, typer.Option("--mesh", help="Draw the labelled mesh instead of bones.")] = False,
    hand_model: Annotated[
        str, typer.Option(metavar="NAME", help="Whose triangles --mesh draws for a JSONL file; `doctor` lists hands.")
    ] = "builtin",
) -> None:
    """Draw a contact sheet of a data set with its labels.

    Examples:
      handmesh data show FreiHAND/ --out sheet.jpg

      handmesh data show photos/labels.jsonl --count 60
    """
    if out.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--out {out}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    check_file(out)
    from handmesh.data.formats import holds_photos
    from handmesh.data.show import show
    from handmesh.files.image import encode_image
    from handmesh.system.atomic import write_atomically

    if holds_photos(path):
        check_ignored(context, ["split"], f"of FreiHAND, and {path} has no parts: leave it out.")
    elif path.is_dir():
        check_ignored(context, ["hand_model"], "of a JSONL, and FreiHAND has a hand of its own: leave it out.")
    if not mesh:
        check_ignored(context, ["hand_model"], "of meshes, and bones are drawn: give --mesh, too, or leave it out.")
    picture = show(path, count, seed, split=split, protocol=crop, mesh=mesh, hand=hand_model)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, encode_image(picture, out.suffix))
    say(f"{out}")
