"""Where the time of a prediction goes: stages, engines, precisions, batches, memory and cold start, side by side.

`bench_engines` runs everything that is compared in turns and in one process; memory and cold start come from a fresh
process for each engine. A row is plain values; `handmesh.bench.timing.as_json` turns rows into the shape that all
benchmarks write.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handmesh.bench.timing import count_multiply_adds, count_parameters, has_torch, torch_threads
from handmesh.config.model import BACKBONES
from handmesh.errors import ConfigError
from handmesh.files.image import encode_image, read_photo
from handmesh.geometry.crop import CropTransform
from handmesh.hand import HandOutput, builtin_hand
from handmesh.model.bundled import find_model
from handmesh.runtime.engine import Engine, open_engine
from handmesh.runtime.timing import Clock, lead_in, time_in_turns
from handmesh.system.cpus import default_threads
from handmesh.system.extras import missing

# engine, precision; "torch-train-time" is the network as it is trained, and needs a bare architecture.
VARIANTS = {
    "torch-train-time": ("torch", "float32"),
    "torch": ("torch", "float32"),
    "torch-bf16": ("torch", "bfloat16"),
    "onnx": ("onnx", "float32"),
    "onnx-int8": ("onnx", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino-bf16": ("openvino", "bfloat16"),
    "openvino-int8": ("openvino", "int8"),
}
PHOTO_SIZE = (640, 480)

if TYPE_CHECKING:
    from handmesh.model.backbone import Backbone

Run = Callable[[NDArray[np.uint8]], HandOutput]


@dataclass(frozen=True)
class EngineRow:
    """One engine in one precision on batches of one size. Milliseconds; of a batch, not of a crop."""

    model: str
    engine: str
    precision: str
    form: str  # train-time or reparameterized
    size: int  # px, side of a crop
    batch: int
    threads: int
    clock: Clock
    network_ms: float  # median; with the hand model
    p95_ms: float
    min_ms: float
    spread_ms: float  # 5th to 95th percentile
    runs: int
    crops_per_s: float  # at the median
    ratio: float  # of the median to reparameterized torch's in float32, or to the first row's without that
    distance_mm: float  # mean distance of a vertex from float32 torch's, or without torch from float32 ONNX's
    cold_start_ms: float | None  # fresh process to first answer; None: not measured for this row
    memory_mb: float | None  # peak of that process; None also where the system does not say
    parameters: int | None  # of the backbone in this form; None: not of a bare architecture
    multiply_adds: int | None  # of the backbone for one crop; likewise


@dataclass(frozen=True)
class StageRow:
    """One stage of a prediction on one photo of one hand, on one thread of ONNX Runtime."""

    model: str
    engine: str
    precision: str
    batch: int
    threads: int
    clock: Clock
    stage: str
    network_ms: float  # median of this stage; the name is every row's
    p95_ms: float
    runs: int


def bench_engines(
    model: str | None,
    variants: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1,),
    size: int = 224,
    threads: int | None = None,
    runs: int = 20,
    clock: Clock = "wall",
    cold: bool = True,
) -> Iterator[list[EngineRow]]:
    """The rows of one batch size after the other. variants: None for torch, where it is installed, and onnx.

    model: a model file, None for the bundled one, or a bare architecture, "fastvit_ma36", which gets random weights
    and crops of `size`. Raises ConfigError for what cannot be measured, before anything is.
    """
    if variants is None:
        variants = ("torch", "onnx") if has_torch() else ("onnx",)
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ConfigError(f"There is no engine {', '.join(map(repr, unknown))}. Known: {', '.join(VARIANTS)}.")
    if not variants or not batches:
        raise ConfigError("Nothing to measure: name at least one engine and one batch size.")
    bare = is_bare(model)
    if not bare and (path := find_model(model)).suffix != ".safetensors":
        raise ConfigError(f"{path} is an exported file, for one engine: give the model file it was made from.")
    if "torch-train-time" in variants and not bare:
        raise ConfigError("torch-train-time needs a bare architecture, such as --model fastvit_ma36.")
    needing_torch = [name for name in variants if bare or name.startswith("torch") or name.endswith("int8")]
    if needing_torch and not has_torch():
        raise missing("torch", "train", f"{needing_torch[0]} of {model or 'the bundled model'}")
    threads = threads or default_threads()
    if clock == "cpu" and threads != 1:
        raise ConfigError(f"CPU time of {threads} threads adds up: give one thread, or use the wall clock.")
    return _bench_engines(model, bare, variants, batches, size, threads, runs, clock, cold)


def _bench_engines(
    model: str | None,
    bare: bool,
    variants: Sequence[str],
    batches: Sequence[int],
    size: int,
    threads: int,
    runs: int,
    clock: Clock,
    cold: bool,
) -> Iterator[list[EngineRow]]:
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        trained: Run | None = None
        sizes: dict[str, tuple[int, int]] = {}
        if bare:
            assert model is not None
            path, trained, backbone = random_model(model, size, Path(folder))
            for form, of_form in (("train-time", backbone), ("reparameterized", backbone.reparameterize())):
                sizes[form] = count_parameters(of_form), count_multiply_adds(of_form, size)
        else:
            path = find_model(model)
        name = model if bare and model is not None else path.stem
        engines: dict[str, Run] = {}
        starts: dict[str, tuple[float, float | None] | None] = {}
        for variant in variants:
            if variant == "torch-train-time":
                assert trained is not None
                engines[variant], starts[variant] = trained, None
                continue
            source = _int8_graph(path, Path(folder)) if variant.endswith("int8") else path
            engines[variant] = _open(source, variant, threads)
            starts[variant] = cold_start(source, variant, threads) if cold else None
        reference = open_engine(path, "cpu", engine="torch" if has_torch() else "onnx", threads=threads)
        for batch in batches:
            images = np.random.default_rng(batch).integers(
                0, 256, (batch, reference.resolution, reference.resolution, 3), dtype=np.uint8
            )
            expected = reference(images).vertices
            tasks = {variant: partial(engine, images) for variant, engine in engines.items()}
            timings = time_in_turns(tasks, runs=runs, clock=clock, lead_in_s=lead_in(threads))
            base = timings["torch" if "torch" in timings else next(iter(timings))].median_ms
            rows = []
            for variant, timing in timings.items():
                engine, precision = VARIANTS[variant]
                start = starts[variant]
                form = "train-time" if variant == "torch-train-time" else "reparameterized"
                parameters, multiply_adds = sizes.get(form, (None, None))
                distances = np.linalg.norm(engines[variant](images).vertices - expected, axis=-1)
                rows.append(
                    EngineRow(
                        model=name,
                        engine=engine,
                        precision=precision,
                        form=form,
                        size=reference.resolution,
                        batch=batch,
                        threads=threads,
                        clock=clock,
                        network_ms=timing.median_ms,
                        p95_ms=timing.p95_ms,
                        min_ms=timing.min_ms,
                        spread_ms=timing.spread_ms,
                        runs=timing.runs,
                        crops_per_s=1000 * batch / timing.median_ms,
                        ratio=timing.median_ms / base,
                        distance_mm=1000 * float(distances.mean()),
                        cold_start_ms=start[0] if start else None,
                        memory_mb=start[1] if start else None,
                        parameters=parameters,
                        multiply_adds=multiply_adds,
                    )
                )
            yield rows


def _open(path: Path, variant: str, threads: int) -> Engine:
    engine, precision = VARIANTS[variant]
    wanted: Any = "auto" if precision == "int8" else precision
    name: Any = engine
    return open_engine(path, "cpu", engine=name, precision=wanted, threads=threads)


def random_model(name: str, size: int, folder: Path) -> tuple[Path, Run, Backbone]:
    """A model file of this architecture with random weights and the batch-norm statistics of noise; and its train-time
    form, as something to run and as its backbone. Raises ConfigError for an impossible size.
    """
    import torch

    from handmesh.config.model import ModelConfig
    from handmesh.hand.layer import HandModel
    from handmesh.model.checkpoint import save_model
    from handmesh.model.network import HandMeshNet, to_device

    if size < 64 or size % 32:
        raise ConfigError(f"Crops of {size} px: a network takes multiples of 32 from 64 on.")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = HandMeshNet(
            ModelConfig.model_validate({"backbone": name, "resolution": size}), HandModel(builtin_hand())
        )
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over the batches seen
        network.train()(torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8))
        network.eval()
    path = folder / f"{name}.safetensors"
    save_model(path, network.reparameterize(), training={})
    network = to_device(network, torch.device("cpu"))

    def trained(crops: NDArray[np.uint8]) -> HandOutput:
        with torch.inference_mode():
            return HandOutput(*(tensor.numpy() for tensor in network(torch.from_numpy(crops))))

    return path, trained, network.backbone


def _int8_graph(path: Path, folder: Path) -> Path:
    """All that can be is quantised, with the ranges of noise: for its time. `handmesh export` also weighs its cost."""
    from handmesh.runtime.export import plain_graph, quantisable, quantised
    from handmesh.runtime.graph import metadata_of
    from handmesh.runtime.trace import with_metadata

    target = folder / f"{path.stem}.int8.onnx"
    if not target.exists():
        exact = folder / "exact.onnx"
        exact.write_bytes(graph := plain_graph(path))
        record = json.loads(metadata_of(path)["handmesh_record"])
        side = record["model"]["resolution"]
        noise = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
        nodes = [node for inside in quantisable(graph).values() for node in inside]
        record = json.dumps(record | {"precision": "int8"})
        target.write_bytes(with_metadata(quantised(exact, nodes, noise, folder), {"handmesh_record": record}))
    return target


_COLD_START = """
import json, sys, time
started = time.perf_counter()
path, engine, precision, threads = json.loads(sys.argv[1])
import numpy as np
from handmesh.runtime.engine import open_engine
opened = open_engine(path, "cpu", engine=engine, precision=precision, threads=threads)
opened(np.zeros((1, opened.resolution, opened.resolution, 3), np.uint8))
taken = 1000 * (time.perf_counter() - started)
memory = None
if sys.platform == "linux":  # where a new process's ru_maxrss begins at the peak of the one that started it
    with open("/proc/self/status") as status:
        peaks = [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")]  # none in some sandboxes
    memory = peaks[0] if peaks else None
elif sys.platform == "darwin":
    import resource
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps([taken, memory]))
"""


def cold_start(path: Path, variant: str, threads: int) -> tuple[float, float | None]:
    """Milliseconds from a running interpreter to the first answer, and peak megabytes (None where the system does not
    say), in a process of its own. The graph is in the cache already.
    """
    engine, precision = VARIANTS[variant]
    arguments = json.dumps([str(path), engine, "auto" if precision == "int8" else precision, threads])
    run = subprocess.run([sys.executable, "-c", _COLD_START, arguments], capture_output=True, text=True, check=True)
    taken, memory = json.loads(run.stdout)
    return taken, memory


def bench_stages(model: str | None, *, size: int = 224, runs: int = 20, clock: Clock = "wall") -> list[StageRow]:
    """What finding the hand of a photo of `PHOTO_SIZE` is made of, on one thread; the stages take turns.

    "crop", "network" and "fit" (of a model that keeps its heatmaps) are of one crop, "predict" is the three of them;
    "find" is all from the file's bytes on, with the detector and as many crops as it asks for.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(str(model), size, Path(folder))[0] if is_bare(model) else find_model(model)
        return _bench_stages(path, runs, clock)


def is_bare(model: str | None) -> bool:
    """A name of an architecture, not of a file."""
    return model in BACKBONES and not Path(model).exists()


def _bench_stages(path: Path, runs: int, clock: Clock) -> list[StageRow]:
    import cv2

    from handmesh.files.mesh import encode_hands
    from handmesh.predict import Predictor, as_mesh_hand, load_predictor
    from handmesh.predict.refine import refined
    from handmesh.synth import SceneRenderer, sample_generator

    finder = load_predictor(path, threads=1)
    engine, detector = finder.engine, finder.detector
    assert detector is not None
    width, height = PHOTO_SIZE
    scene = SceneRenderer(builtin_hand(), size=384).render(sample_generator(2026, 7)).image
    image = np.full((height, width, 3), 90, np.uint8)
    side = min(width, height)
    image[:, :side] = cv2.resize(scene, (side, side))
    encoded = encode_image(image, "jpg")
    photo = read_photo(encoded)
    crop = CropTransform.whole_image(width, height)
    crops = crop.warp(photo.image, engine.resolution)[None]
    predictor = Predictor(engine, passes=1)
    output = engine(crops)
    (hand,) = predictor(photo, handedness="right", min_score=0)
    tasks: dict[str, Callable[[], object]] = {
        "decode": lambda: read_photo(encoded),
        "detector": lambda: detector(photo.image),
        "crop": lambda: crop.warp(photo.image, engine.resolution),
        "network": lambda: engine(crops),
        **({"fit": lambda: refined(output, engine.hand)} if predictor.refines else {}),
        "predict": lambda: predictor(photo, handedness="right", min_score=0),
        "find": lambda: finder(encoded),
        "encode": lambda: encode_hands([as_mesh_hand(hand)], ".json"),
        "draw": lambda: hand.overlay(photo.image),
    }
    timings = time_in_turns(tasks, runs=runs, clock=clock)
    return [
        StageRow(path.stem, "onnx", "float32", 1, 1, clock, stage, timing.median_ms, timing.p95_ms, timing.runs)
        for stage, timing in timings.items()
    ]
