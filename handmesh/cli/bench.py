"""`handmesh bench`: how fast models are on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from handmesh.cli.shell import JsonOption, check_file, check_ignored, console, parse_list, progress_bar, say
from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS


class Measured(NamedTuple):
    machine: Mapping[str, Any]
    rows: list[Any]
    lines: list[str]  # for people


def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|PATH|fastvit_...", help="A model, or a bare architecture; else the bundled model."
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(metavar="torch,onnx,...", help="Engines, with commas; default: torch, if there, and onnx."),
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Also every stage of a prediction, from bytes to files.")
    ] = False,
    backbones: Annotated[
        bool, typer.Option("--backbones", help="Instead: the FastViT family, train-time against reparameterized form.")
    ] = False,
    names: Annotated[str, typer.Option(metavar="NAME,...", help="With --backbones: which ones, or all.")] = "all",
    size: Annotated[
        int | None,
        typer.Option(metavar="N", min=32, help="Side of images in pixels, of a bare architecture; default: 224."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Crops at a time; several sizes with commas.")] = "1",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=MAX_THREADS, help="Threads of each engine; default: all usable."),
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs of each.")] = 20,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Do not count while other programs run; needs --threads 1.")
    ] = False,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Cold start and memory, in fresh processes.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write machine and rows into this file, as JSON.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure on this machine: milliseconds, memory and cold start of a model on each engine, side by side.

    Everything compared takes turns, so a busy machine disturbs all alike. Engines: torch-train-time (as trained),
    torch, torch-bf16, onnx, onnx-int8, openvino, openvino-bf16, openvino-int8.

    Examples:
      handmesh bench --stages

      handmesh bench --model fastvit_ma36 --engines torch,onnx,onnx-int8 --batch 1,8 --out bench.json

      handmesh bench --backbones --names fastvit_t8,fastvit_ma36 --size 224 --batch 8 --threads 2
    """
    from handmesh.bench.engines import is_bare
    from handmesh.bench.timing import as_json
    from handmesh.system.atomic import write_atomically

    batches = _batches(batch)
    clock: Literal["wall", "cpu"] = "cpu" if cpu_time else "wall"
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}. Create it first.")
    if out is not None:
        check_file(out)
    if backbones and len(batches) > 1:
        raise ConfigError(f"--backbones measures one batch size at a time, found --batch {batch}.")
    if size is not None and not backbones and not is_bare(model):
        raise ConfigError("--size is of a bare architecture; a model file has its own.")
    if backbones and (model is not None or stages):
        raise ConfigError("--backbones measures bare architectures, those of --names: no --model, and no --stages.")
    if names != "all" and not backbones:
        raise ConfigError("--names says which of --backbones; a model is named by --model.")
    if backbones and cold:
        check_ignored(context, ["cold"], "of one model's engines, and --backbones compares models: give one of them.")
    if backbones:
        machine, rows, lines = _bench_backbones(names, engines, size or 224, batches[0], threads, runs, clock)
    else:
        machine, rows, lines = _bench_engines(model, engines, stages, size or 224, batches, threads, runs, clock, cold)
    if json:
        console.out(as_json(machine, rows), highlight=False, end="")
    else:
        for line in lines:
            say(line)
    if out is not None:
        write_atomically(out, as_json(machine, rows).encode())
        if not json:
            say(f"Written: {out}")


def _batches(text: str) -> list[int]:
    sizes = parse_list(text)
    if not sizes or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigError(f"--batch {text!r}: wanted numbers of crops from 1 on, for example 1,8.")
    return [int(size) for size in sizes]


def _bench_engines(
    model: str | None,
    engines: str | None,
    stages: bool,
    size: int,
    batches: list[int],
    threads: int | None,
    runs: int,
    clock: Literal["wall", "cpu"],
    cold: bool,
) -> Measured:
    from handmesh.bench.engines import bench_engines, bench_stages
    from handmesh.bench.timing import describe_machine

    machine = describe_machine()
    measured = bench_engines(
        model,
        parse_list(engines) if engines else None,
        batches=batches,
        size=size,
        threads=threads,
        runs=runs,
        clock=clock,
        cold=cold,
    )
    columns = ("engine", "batch", "ms", "p95", "spread", "crops/s", "ratio", "mm off", "cold ms", "MB")
    cells = []
    rows: list[Any] = []
    with progress_bar() as progress:
        for of_batch in progress.track(measured, total=len(batches), description="measuring"):
            rows += of_batch
            for row in of_batch:
                form = "" if row.form == "reparameterized" else " train-time"
                line = (
                    f"{row.engine}{form} {row.precision}",
                    str(row.batch),
                    f"{row.network_ms:.2f}",
                    f"{row.p95_ms:.2f}",
                    f"{row.spread_ms:.2f}",
                    f"{row.crops_per_s:.1f}",
                    f"{row.ratio:.3f}",
                    f"{row.distance_mm:.2g}",
                    "" if row.cold_start_ms is None else f"{row.cold_start_ms:.0f}",
                    "" if row.memory_mb is None else f"{row.memory_mb:.0f}",
                )
                cells.append(line)
    first = rows[0]
    lines = [
        f"{first.model}, {first.size} px, {first.threads} thread(s); {clock} time of a batch, {runs} runs in turns",
        _machine_line(machine),
        *_table(columns, cells),
    ]
    if stages:
        measured_stages = bench_stages(model, size=size, runs=runs, clock=clock)
        rows += measured_stages
        lines.append(f"One hand in a 640x480 photo, onnx, 1 thread; {clock} time, {runs} runs")
        timed = [(stage.stage, f"{stage.network_ms:.2f}", f"{stage.p95_ms:.2f}") for stage in measured_stages]
        lines += _table(("stage", "ms", "p95"), timed)
    return Measured(machine, rows, lines)


def _machine_line(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime") if machine[name])
    return f"{machine['cpu']}, {versions}"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """As Markdown, which can be pasted and is never cut at the edge of a terminal."""
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for cells in (columns, rule, *lines):
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield f"| {' | '.join([first, *others])} |"


def _bench_backbones(
    names: str,
    engines: str | None,
    size: int,
    batch: int,
    threads: int | None,
    runs: int,
    clock: Literal["wall", "cpu"],
) -> Measured:
    from handmesh.bench.engines import bench_engines
    from handmesh.bench.timing import describe_machine
    from handmesh.config.model import BACKBONES

    chosen = list(BACKBONES) if names == "all" else parse_list(names)
    if unknown := [name for name in chosen if name not in BACKBONES]:
        raise ConfigError(f"There is no backbone {', '.join(map(repr, unknown))}. Known: {', '.join(BACKBONES)}.")
    variants = parse_list(engines) if engines else ["torch-train-time", "torch", "onnx"]
    machine = describe_machine()
    measured = [
        bench_engines(name, variants, batches=(batch,), size=size, threads=threads, runs=runs, clock=clock, cold=False)
        for name in chosen
    ]
    rows: list[Any] = []
    with progress_bar() as progress:
        for of_model in progress.track(measured, description="measuring"):
            rows += next(of_model)
    title = (
        f"{size} px, batch {batch}, {rows[0].threads} thread(s); {clock} time of a whole network, median of {runs} runs"
    )
    cells = [
        (
            row.model,
            f"{row.engine} {row.form} {row.precision}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.multiply_adds / 1e9:.2f}",
            f"{row.network_ms:.1f}",
            f"{row.ratio:.3f}",
        )
        for row in rows
    ]
    table = _table(("model", "engine", "M params", "G mult-adds", "ms", "ratio"), cells)
    return Measured(machine, rows, [title, _machine_line(machine), *table])
