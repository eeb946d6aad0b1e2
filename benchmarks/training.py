"""How fast training is on this machine:  python benchmarks/training.py --compile --data FreiHAND

Two tables. *Steps*: forward, losses, backward, optimiser on random pictures that are in memory already, eager and (with
--compile) compiled, for each batch size: images/s, peak memory, and the hours that the config's whole run would take.
*Data*: the loader alone, images/s for each number of workers; and, beside the fastest step, the share of the time that
training would wait for it. `handmesh train` itself reports the true share while it runs (`data_wait_fraction`).
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from handmesh.config.load import load_config
from handmesh.config.train import TrainConfig
from handmesh.data.sources import open_data
from handmesh.data.stream import training_batches
from handmesh.hand import builtin_hand
from handmesh.learn.losses import hand_loss
from handmesh.learn.optimizer import make_optimizer
from handmesh.learn.targets import complete_targets
from handmesh.learn.train import TrainingModule, build_network
from handmesh.model.network import DenseHead, to_device
from handmesh.system.allocator import keep_freed_memory
from handmesh.system.cpus import checked_threads

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "freihand_ma36.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--steps", type=int, default=30, help="timed, after 10 that are not")
    parser.add_argument("--compile", action="store_true", help="compiled steps too")
    parser.add_argument("--data", type=Path, help="a prepared FreiHAND: time the loader on it")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=4000, help="for each number of workers")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [*arguments.set, "model.hand=builtin", "pretrained=null"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {checked_threads(config.threads)} thread(s)"
    )
    print(
        f"{config.model.backbone}, {config.model.resolution} px, {config.precision}, {name}, torch {torch.__version__}"
    )

    fastest = 0.0
    if arguments.batches != [0]:
        print(f"{'steps':10} {'batch':>6} {'images/s':>9} {'peak GB':>8} {'ms/step':>8}")
        for compiled in (False, True) if arguments.compile else (False,):
            for batch in arguments.batches:
                rate, memory = time_steps(config, batch, arguments.steps, device, compiled=compiled)
                fastest = max(fastest, rate)
                kind = "compiled" if compiled else "eager"
                print(f"{kind:10} {batch:6} {rate:9.1f} {memory:8.2f} {1000 * batch / rate:8.1f}", flush=True)
        samples = 130_240 * (config.epochs or 1)
        print(f"{config.epochs or 1:g} times 130,240 images at that speed: {samples / fastest / 3600:.1f} hours")
    if arguments.data is not None:
        time_loader(config, arguments.data, arguments.workers, arguments.images, fastest)


def time_steps(
    config: TrainConfig, batch: int, steps: int, device: torch.device, *, compiled: bool
) -> tuple[float, float]:
    """(images per second, peak GB of GPU memory; 0 on a CPU) of whole training steps."""
    if device.type == "cpu":
        torch.set_num_threads(checked_threads(config.threads))
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True
    model = to_device(build_network(config, builtin_hand()), device)
    wants_dense = any((config.loss.heatmaps, config.loss.heatmap_keypoints, config.loss.heatmap_depths))
    module = TrainingModule(
        model, to_device(DenseHead(model.backbone.pyramid_channels), device) if wants_dense else None
    )
    optimizer = make_optimizer(config, module.train())
    low = config.precision == "bfloat16"
    if low and device.type == "cpu":
        model.backbone.train_perceptrons_in_bfloat16()
    if compiled:
        module.compile()
    side = config.model.resolution
    images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    pose, betas = torch.eye(3, device=device).expand(batch, 16, 3, 3), torch.zeros(batch, 10, device=device)
    vertices, joints = model.hand(pose, betas)
    targets = complete_targets(6 * joints[..., :2], joints, vertices, pose, betas)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if low and device.type == "cuda" else nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            output, heatmaps = module(images)
        loss, _ = hand_loss(output, heatmaps, targets, config.loss, config.loss_norms)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1e9)
        optimizer.step()

    warm_up = 10 if device.type == "cuda" else 2
    for _ in range(warm_up):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return steps * batch / seconds, memory


def time_loader(config: TrainConfig, folder: Path, workers: list[int], images: int, fastest: float) -> None:
    data = config.data.model_copy(update={"synthetic": None, "photos": ()})
    assert data.freihand is not None, "the config has no data.freihand"
    data = data.model_copy(update={"freihand": data.freihand.model_copy(update={"directory": folder})})
    print(f"{'data':10} {'workers':>7} {'images/s':>9} {'per worker':>11} {'main ms/image':>13} {'waiting':>8}")
    for count in workers:
        some = config.model_copy(update={"data": data, "loader_workers": count, "batch_size": 64, "epochs": None})
        some = some.model_copy(update={"steps": images // 64 + 2})
        run = open_data(some, builtin_hand())
        batches = training_batches(run.sources, some, 0)
        next(batches)
        next(batches)  # the workers are running and their files are open
        started, before = time.perf_counter(), time.process_time()
        done = sum(len(batch.image) for batch in batches)
        seconds, own = time.perf_counter() - started, time.process_time() - before
        rate = done / seconds
        # Loading goes on beside the steps: what it lacks is waited for.
        waiting = f"{max(0.0, 1 - rate / fastest):8.0%}" if fastest else f"{'-':>8}"
        print(
            f"{'':10} {count:7} {rate:9.0f} {rate / max(count, 1):11.0f} {1000 * own / done:13.2f} {waiting}",
            flush=True,
        )


if __name__ == "__main__":
    main()
