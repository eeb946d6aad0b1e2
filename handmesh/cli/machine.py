"""What concerns the machine: bench, serve, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from handmesh.cli.shell import ModelOption, console, parse_list, progress_bar, say
from handmesh.errors import ConfigError


def bench(
    backbones: Annotated[
        bool, typer.Option("--backbones", help="The FastViT family, folded against unfolded.")
    ] = False,
    names: Annotated[str, typer.Option(metavar="NAME,...", help="Backbones, separated by commas, or all.")] = "all",
    engines: Annotated[
        str, typer.Option(metavar="torch,onnxruntime", help="Engines, separated by commas.")
    ] = "torch,onnxruntime",
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each engine; default: all cores.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 20,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Do not count while other programs run; needs --threads 1.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write machine and rows into this file.")] = None,
) -> None:
    """Measure on this machine: parameters, multiply-adds, and milliseconds on each engine.

    Weights are random, which changes no time. Everything compared takes turns, so a busy machine disturbs all alike.

    Examples:
      handmesh bench --backbones

      handmesh bench --backbones --names fastvit_t8,fastvit_ma36 --size 224 --batch 8 --threads 2 --json bench.json
    """
    if not backbones:
        raise ConfigError("Nothing to measure: say what, for example `handmesh bench --backbones`.")
    from handmesh.backbone import VARIANTS
    from handmesh.bench import as_json, bench_backbones, describe_machine
    from handmesh.image import write_atomically

    chosen = tuple(VARIANTS) if names == "all" else parse_list(names)
    chosen_engines = parse_list(engines)
    machine = describe_machine()
    table = Table(caption=f"{machine['processor']}, torch {machine['torch']}, onnxruntime {machine['onnxruntime']}")
    for title in ("model", "form"):
        table.add_column(title, no_wrap=True)
    for title in ("M params", "G mult-adds", *(f"{engine} ms" for engine in chosen_engines)):
        table.add_column(title, justify="right")
    rows = []
    measured = bench_backbones(
        chosen,
        size=size,
        batch=batch,
        threads=threads,
        engines=chosen_engines,
        runs=runs,
        clock="processor" if processor_time else "wall",
    )
    with progress_bar() as progress:
        for of_model in progress.track(measured, total=len(chosen), description="measuring"):
            rows += of_model
            for form in ("unfolded", "folded"):
                of_form = [row for row in of_model if row.form == form]
                table.add_row(
                    of_model[0].model if form == "unfolded" else "",
                    form,
                    f"{of_form[0].parameters / 1e6:.2f}",
                    f"{of_form[0].multiply_adds / 1e9:.2f}",
                    *(f"{row.network_ms:.1f}" for row in of_form),
                )
    table.title = (
        f"{size} px, batch {batch}, {rows[0].threads} thread(s), float32; {rows[0].clock} time, median of {runs} runs"
    )
    console.print(table)
    if json is not None:
        write_atomically(json, as_json(machine, rows).encode())
        say(f"Written: {json}")


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: 8000. 0: any free one.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; or set HANDMESH_TOKEN.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen publicly without a token: a proxy in front asks who calls.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages of this origin may call; repeatable.")
    ] = None,
    passes: Annotated[int | None, typer.Option(min=1, max=10, help="Looks at each hand; default: 3.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; default: torch's own.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Crops per batch; default: 1 on a CPU, 16 on CUDA.")
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Hands in work at a time; more are answered 429. Default: 64.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds until a request is answered 504; default: 10.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Answer over HTTP: POST a photo to /v1/hands, get JSON, GLB, NPZ or an overlay.

    Every option, and several more, can also be set by a variable, such as HANDMESH_QUEUE_SIZE; an option wins.
    docs/serving.md has the list. SIGTERM or Ctrl-C finishes what is in work and ends.

    Examples:
      handmesh serve

      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/hands -H "Accept: image/png" -o overlay.png

      HANDMESH_TOKEN=$(openssl rand -hex 24) handmesh serve --host 0.0.0.0
    """
    from handmesh_server.run import serve as run_server
    from handmesh_server.settings import Settings

    settings = Settings.from_environment(
        host=host,
        port=port,
        token_file=token_file,
        insecure=insecure or None,
        cors_origins=tuple(cors) if cors else None,
        passes=passes,
        threads=threads,
        max_batch=max_batch,
        queue_size=queue_size,
        deadline_seconds=deadline,
        model=model,
    )
    run_server(settings, announce=lambda address: say(f"Serving on {address}  (Ctrl-C ends it)"))


def doctor() -> None:
    """Check this installation: versions, device, model files, and one tiny inference.

    Example:
      handmesh doctor
    """
    from handmesh.doctor import examine

    table = Table(show_header=False)
    for _ in range(3):
        table.add_column()
    healthy = True
    for finding in examine():
        healthy &= finding.good is not False
        mark = {True: "[green]ok[/]", False: "[bold red]bad[/]", None: "[dim]-[/]"}[finding.good]
        table.add_row(mark, escape(finding.subject), escape(finding.fact))
    console.print(table)
    if not healthy:
        raise typer.Exit(1)
