"""`handmesh serve`: the HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handmesh.cli.shell import ModelOption, say
from handmesh.system.cpus import MAX_THREADS


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="Default: 8000. 0: any free one.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of tokens, one of which clients must send; or set HANDMESH_TOKEN."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen publicly without a token: a proxy in front asks who calls.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages of this origin may call; repeatable.")
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=10,
            help="Crops of a hand; where our detector says how it points, one is enough. Default: 3.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_THREADS, help="Photos at a time, or threads of one alone; default: the cores."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Processes; one that dies is replaced. Default: 1."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1024, help="Crops per batch; default: 1 on a CPU, 16 on CUDA.")
    ] = None,
    queue_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=4096, help="Hands in work at a time; more are answered 429. Default: 64."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds until a request is answered 504; default: 10.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Answer over HTTP: POST a photo to /v1/hands, get JSON, GLB, NPZ or an overlay.

    Every option, and several more, can also be set by a variable, such as HANDMESH_QUEUE_SIZE; an option wins.
    docs/how_to/serving.md has the list. SIGTERM or Ctrl-C finishes what is in work and ends.

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
        workers=workers,
        max_batch=max_batch,
        queue_size=queue_size,
        deadline_seconds=deadline,
        model=model,
    )
    run_server(settings, announce=lambda address: say(f"Serving on {address}  (Ctrl-C ends it)"))
