"""How long things take on this machine, measured so that the numbers can be compared and pasted.

`describe_machine` says where it ran. `bench_backbones` measures the FastViT family: sizes, and the latency of the
train-time and the reparameterized form on each engine, each engine's answers checked against PyTorch's first. Every
measurement is a row of plain values; `as_json` turns rows into the one shape that all of handmesh's benchmarks write:
``{"machine": {...}, "rows": [{"model": ..., "engine": ..., "network_ms": ..., ...}]}``.
"""

import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from handmesh.errors import ConfigError, ExportError
from handmesh.model.fastvit import STRIDE, VARIANTS, FastViT, build_backbone
from handmesh.model.network import to_device
from handmesh.runtime.onnx import import_onnxruntime, session_of
from handmesh.runtime.timing import Clock, lead_in, time_in_turns
from handmesh.system.cpus import usable_cores

ENGINES = ("torch", "onnxruntime")
ONNX_OPSET = 18
MAX_DIFFERENCE = 1e-3  # relative, of an engine's answer to PyTorch's in float32; rounding alone stays below 1e-4


# --- The clock and the machine ----------------------------------------------------------------------------------------


def describe_machine() -> dict[str, str | int | float | None]:
    """What a reader must know to compare: processor, cores that this process may use, load, systems and versions."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # before the measurement
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": import_onnxruntime().__version__,
    }


def as_json(machine: Mapping[str, Any], rows: Sequence[Any]) -> str:
    """Rows (dataclasses) and the machine as the JSON text that all benchmarks write."""
    return json.dumps({"machine": dict(machine), "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


# --- The FastViT family -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackboneRow:
    """One backbone in one form on one engine."""

    model: str
    form: str  # "train-time" or "reparameterized"
    engine: str  # one of `ENGINES`
    precision: str
    size: int  # px, side of the square images
    batch: int
    threads: int
    clock: Clock
    parameters: int  # without a classifier
    multiply_adds: int  # of one image
    network_ms: float  # median, of the whole batch
    p95_ms: float
    least_ms: float
    runs: int
    difference: float  # from PyTorch's train-time form, largest, relative to the largest value


def bench_backbones(
    names: Sequence[str] = tuple(VARIANTS),
    *,
    size: int = 256,
    batch: int = 1,
    threads: int | None = None,
    engines: Sequence[str] = ENGINES,
    runs: int = 20,
    clock: Clock = "wall",
) -> Iterator[list[BackboneRow]]:
    """For each name, the rows of both forms on each engine, as soon as they are measured. Weights are random.

    threads: of each engine; None takes all cores that this process may use. The "processor" clock needs one thread.
    Raises ConfigError for unknown names or engines, an impossible size, or that clock with several threads, before
    anything is measured; and ExportError if an engine's answers are wrong.
    """
    for kind, given, known in (("backbone", names, tuple(VARIANTS)), ("engine", engines, ENGINES)):
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"There is no {kind} {', '.join(map(repr, unknown))}. Known: {', '.join(known)}.")
    if size < STRIDE:
        raise ConfigError(f"Images of {size} px are too small: FastViT needs at least {STRIDE}.")
    threads = threads or usable_cores()
    if clock == "processor" and threads != 1:
        raise ConfigError(f"Processor time of {threads} threads adds up: give one thread, or use the wall clock.")
    return _bench_backbones(names, size, batch, threads, engines, runs, clock)


def _bench_backbones(
    names: Sequence[str], size: int, batch: int, threads: int, engines: Sequence[str], runs: int, clock: Clock
) -> Iterator[list[BackboneRow]]:
    with torch_threads(threads):
        for name in names:
            trained = to_device(build_backbone(name), torch.device("cpu")).eval()
            forms = {"train-time": trained, "reparameterized": trained.reparameterize()}
            images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
            images = images.to(memory_format=torch.channels_last)
            with torch.inference_mode():
                expected = trained(images)
            tasks: dict[tuple[str, str], Callable[[], Any]] = {}
            differences: dict[tuple[str, str], float] = {}
            for engine in engines:
                for form, backbone in forms.items():
                    task = _on_torch(backbone, images) if engine == "torch" else _on_onnx(backbone, images, threads)
                    tasks[engine, form] = task
                    differences[engine, form] = difference = relative_difference(torch.as_tensor(task()), expected)
                    if not difference < MAX_DIFFERENCE:
                        raise ExportError(
                            f"{name} {form} on {engine} differs from PyTorch by {difference:.1e} of the largest value; "
                            f"rounding explains less than {MAX_DIFFERENCE:.0e}. Its time would mean nothing."
                        )
            named = {" ".join(key): task for key, task in tasks.items()}
            timings = time_in_turns(named, runs=runs, clock=clock, lead_in_s=lead_in(threads))
            rows = []
            for engine, form in tasks:
                timing = timings[f"{engine} {form}"]
                rows.append(
                    BackboneRow(
                        model=name,
                        form=form,
                        engine=engine,
                        precision="float32",
                        size=size,
                        batch=batch,
                        threads=threads,
                        clock=clock,
                        parameters=count_parameters(forms[form]),
                        multiply_adds=count_multiply_adds(forms[form], size),
                        network_ms=timing.median_ms,
                        p95_ms=timing.p95_ms,
                        least_ms=timing.least_ms,
                        runs=timing.runs,
                        difference=differences[engine, form],
                    )
                )
            yield rows


def count_parameters(module: nn.Module) -> int:
    """Numbers that are learnt; buffers such as running means are not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(backbone: FastViT, size: int) -> int:
    """Multiply-adds of one size x size image in convolutions, linear layers and attention, which is what papers count.

    With a classifier, of `classify`, otherwise of `forward`. Nothing is computed.
    """
    shadow = _without_values(backbone)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        image = torch.empty(1, 3, size, size, device="meta")
        if backbone.num_classes:
            shadow.classify(image)
        else:
            shadow(image)
    return int(counter.get_total_flops()) // 2


def relative_difference(answer: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return ((answer - expected).abs().max() / expected.abs().max()).item()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch on this many threads, then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _without_values(backbone: FastViT) -> FastViT:
    with torch.device("meta"):
        shadow = build_backbone(backbone.name, num_classes=backbone.num_classes).eval()
        return shadow.reparameterize() if backbone.reparameterized else shadow


def _on_torch(backbone: FastViT, images: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return backbone(images)

    return run


def _on_onnx(backbone: FastViT, images: Tensor, threads: int) -> Callable[[], NDArray[np.float32]]:
    session = onnx_session(backbone, images.shape[-1], threads)
    return partial(_run_onnx, session, images.contiguous().numpy())


def _run_onnx(session: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    (features,) = session.run(None, {"images": images})
    return features


def onnx_session(backbone: FastViT, size: int, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU of `backbone.forward`, for any batch of size x size images.

    Input "images", (B, 3, size, size) float32; one output. Exported to opset 18.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.onnx"
        export_onnx(backbone, size, path)
        return session_of(path, threads)


def export_onnx(backbone: FastViT, size: int, path: Path) -> None:
    """Write `backbone.forward` in evaluation mode, any batch size, as one ONNX file of opset 18."""
    device = next(backbone.parameters()).device
    with _quiet_exporter():
        torch.onnx.export(
            backbone,
            (torch.zeros(2, 3, size, size, device=device),),  # two: the exporter would take one for a constant
            path,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=ONNX_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of its own deprecations and of packages that are not installed: nothing to act on."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
