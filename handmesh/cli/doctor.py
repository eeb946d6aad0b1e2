"""`handmesh doctor`: is this installation sound?"""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from handmesh.cli.shell import JsonOption, console, say_json


def doctor(json: JsonOption = False) -> None:
    """Check this installation: versions, device, model files, and one tiny inference.

    With --json each finding has a subject, a fact, and whether it is good (null: optional and not there).

    Examples:
      handmesh doctor

      handmesh doctor --json
    """
    from handmesh.doctor import examine

    if json:
        findings = list(examine())
        say_json([finding._asdict() for finding in findings])
        if any(finding.good is False for finding in findings):
            raise typer.Exit(1)
        return
    table = Table(show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")  # of a path, the end says most
    healthy = True
    for finding in examine():
        healthy &= finding.good is not False
        mark = {True: "[green]ok[/]", False: "[bold red]bad[/]", None: "[dim]-[/]"}[finding.good]
        table.add_row(mark, escape(finding.subject), escape(finding.fact))
    console.print(table)
    if not healthy:
        raise typer.Exit(1)
