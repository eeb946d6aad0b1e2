"""Training: one loop, visible from top to bottom.

A run lives in one directory: `config.yaml` (every setting, resolved), `environment.json`, `metrics.jsonl`, the newest
training states, and the averaged weights of the last evaluation, twice: `model.safetensors` as trained, and
`deploy.safetensors`, folded and in float16, which is what the package ships of its own run. Starting again with
`resume` goes on where the newest readable state stopped, with the same examples and the same numbers.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from handmesh import metrics
from handmesh.backbone_weights import load_backbone_weights
from handmesh.checkpoint import load_latest_state, save_model, save_state, written_atomically
from handmesh.config import TrainConfig
from handmesh.data.batches import collate, held_out_pack, held_out_samples, training_batches, training_pack
from handmesh.data.sample import HandBatch, HandSample
from handmesh.errors import CheckpointError, ConfigError, DataError
from handmesh.hand import HandOutput, builtin_hand
from handmesh.losses import HandTargets, hand_loss
from handmesh.mano import HandModel
from handmesh.model import DenseHead, HandMeshNet, to_device
from handmesh.synth import Pack
from handmesh.synth.dataset import Progress
from handmesh.weights import find_backbone_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progressed:
    """What the loop tells whoever is watching, every `log_every` steps."""

    step: int
    losses: dict[str, float]  # means since the last report; "total" is the weighted sum
    images_per_second: float
    waiting_share: float  # of the time since the last report that was spent waiting for data


def train(
    config: TrainConfig,
    directory: Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progressed], None] = lambda _: None,
    on_render: Progress | None = None,
) -> Path:
    """Train and return the path of the averaged model. Raises ConfigError, DataError or CheckpointError.

    Without `resume` the directory must not hold a run already: nothing is overwritten by accident.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = load_latest_state(directory) if resume else None
    if state is None and any(directory.glob("state-*.pt")):
        if resume:
            raise CheckpointError(f"No state in {directory} can be read: start again with another --out.")
        raise ConfigError(f"{directory} already holds a run: add --resume to go on with it, or choose another --out.")
    if state is not None and state["config"] != config.model_dump(mode="json"):
        raise ConfigError(f"{directory} was started with other settings (see its config.yaml): resume with those.")
    write_run_record(config, directory)
    _rewind(directory / "metrics.jsonl", state["step"] if state is not None else 0)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    cv2.setNumThreads(0)
    hand = HandModel(builtin_hand())
    model = to_device(HandMeshNet(config.model, hand), device)
    if config.pretrained is not None and state is None:
        load_backbone_weights(model.backbone, find_backbone_weights(config.pretrained))
    dense = to_device(DenseHead(model.backbone.pyramid_channels), device)
    optimizer = make_optimizer(config, model, dense)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first_step = 0
    if state is not None:
        first_step = state["step"]
        model.load_state_dict(state["model"])
        dense.load_state_dict(state["dense"])
        optimizer.load_state_dict(state["optimizer"])
        average = {name: value.to(device) for name, value in state["average"].items()}
        torch.set_rng_state(state["torch_rng"])  # drop path draws from it
        logger.info("resuming at step %d of %d", first_step, config.steps)

    pack = training_pack(config.data, config.data.workers, on_render)
    held_out = held_out_pack(config.data, config.evaluation_count, config.data.workers, on_render)
    autocast: AbstractContextManager[Any] = nullcontext()
    if config.precision == "bfloat16" and device.type == "cpu":
        model.backbone.train_perceptrons_in_bfloat16()
    elif config.precision == "bfloat16":
        autocast = torch.autocast(device.type, torch.bfloat16)
    sums: dict[str, float] = {}
    started, waited, since = time.perf_counter(), 0.0, first_step
    model.train()
    dense.train()
    for step, batch, wait in _timed(training_batches(pack, config, first_step), first_step):
        images, targets = batch.image.to(device, non_blocking=True), make_targets(batch, hand, device)
        set_learning_rate(optimizer, config, step)
        with autocast:
            output, pyramid = model.forward_with_pyramid(images)
            heatmaps = dense(pyramid)
        loss, parts = hand_loss(output, heatmaps, targets, config.loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([*model.parameters(), *dense.parameters()], config.optimizer.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):  # before it gets into the weights, and into a state
            raise DataError(
                f"The loss is {loss.item()} and its gradient's norm {norm.item()} at step {step}. The states in "
                f"{directory} are from before: lower optimizer.learning_rate, or look at the data with "
                "`handmesh synth --sheet`."
            )
        optimizer.step()
        update_average(average, model, step, config.optimizer.ema_decay)

        waited += wait
        for name, value in {**parts, "total": loss}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            elapsed, count = time.perf_counter() - started, done - since
            losses = {name: value / count for name, value in sums.items()}
            progressed = Progressed(done, losses, count * config.batch_size / elapsed, waited / elapsed)
            on_progress(progressed)
            _append(directory / "metrics.jsonl", {"step": done, **losses, "img_s": progressed.images_per_second})
            sums, started, waited, since = {}, time.perf_counter(), 0.0, done
        if done % config.evaluate_every == 0 or done == config.steps:
            averaged = copy.deepcopy(model).eval()  # a new network would draw random numbers that drop path is due
            averaged.load_state_dict(average)
            scores = evaluate_held_out(averaged, held_out, config.model.resolution)
            _append(directory / "metrics.jsonl", {"step": done, "held_out": scores})
            logger.info("step %d  held out: %s", done, "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            training = {"steps": done, "samples": done * config.batch_size, "held_out": scores}
            save_model(directory / "model.safetensors", averaged, training=training)
            save_model(directory / "deploy.safetensors", averaged.reparameterize(), training=training, half=True)
            started, since = time.perf_counter(), done
            sums, waited = {}, 0.0
        # Last: who resumes from a state finds all that its step should have written.
        if done % config.checkpoint_every == 0 or done == config.steps:
            state = {
                "step": done,
                "config": config.model_dump(mode="json"),
                "model": model.state_dict(),
                "dense": dense.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "torch_rng": torch.get_rng_state(),
            }
            save_state(directory, done, state, config.keep_checkpoints)
    return directory / "model.safetensors"


def make_optimizer(config: TrainConfig, model: nn.Module, dense: nn.Module) -> torch.optim.Optimizer:
    """AdamW; weight decay on kernels and matrices only, not on biases, norms and layer scales."""
    parameters = [*model.named_parameters(), *dense.named_parameters()]
    decayed = [value for name, value in parameters if value.ndim > 1 and "layer_scale" not in name]
    others = [value for name, value in parameters if value.ndim <= 1 or "layer_scale" in name]
    groups = [{"params": decayed, "weight_decay": config.optimizer.weight_decay}, {"params": others, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=config.optimizer.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Linear warm-up, then half a cosine down to the final rate."""
    settings = config.optimizer
    if step < settings.warmup_steps:
        rate = settings.learning_rate * (step + 1) / settings.warmup_steps
    else:
        done = (step - settings.warmup_steps) / max(config.steps - settings.warmup_steps, 1)
        span = settings.learning_rate - settings.final_learning_rate
        rate = settings.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights and batch-norm statistics; shorter at first, to forget the start."""
    decay = min(decay, (1 + step) / (10 + step))
    current = model.state_dict()
    floating = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floating], [current[name] for name in floating], 1 - decay)
    for name in average.keys() - floating:
        average[name].copy_(current[name])


@torch.no_grad()
def make_targets(batch: HandBatch, hand: HandModel, device: torch.device) -> HandTargets:
    """Labels of a batch; the mesh comes from pose and shape, exactly as the labels' own renders did."""
    keypoints, pose, betas = (
        label.to(device, non_blocking=True) for label in (batch.keypoints, batch.pose, batch.betas)
    )
    vertices, joints = hand(pose, betas)
    return HandTargets(keypoints=keypoints, joints=joints, vertices=vertices, pose=pose, betas=betas)


@torch.no_grad()
def predict_held_out(
    model: HandMeshNet, pack: Pack, resolution: int, upright: bool
) -> Iterator[tuple[HandOutput, HandTargets]]:
    """(prediction, truth) in batches over a pack with fixed crops."""
    device = model.camera_head.weight.device
    batch: list[HandSample] = []
    for index, sample in enumerate(held_out_samples(pack, resolution, upright)):
        batch.append(sample)
        if len(batch) == 32 or index == len(pack) - 1:
            stacked = collate(batch)
            yield model(stacked.image.to(device)), make_targets(stacked, model.hand, device)
            batch = []


def evaluate_held_out(model: HandMeshNet, pack: Pack, resolution: int) -> dict[str, float]:
    """Scores of one pass over fixed crops, turned anyhow and upright: PA-MPJPE and PA-MPVPE (rotation only), 2D error.

    A constant hand is scored beside them: the mean of the true joints in the hands' own frames.
    """
    scores: dict[str, float] = {}
    for upright in (False, True):
        joints_mm, vertices_mm, keypoints_box, flipped = [], [], [], []
        truths = []
        for output, targets in predict_held_out(model, pack, resolution, upright):
            joints_mm.append(1000 * metrics.pa_rigid_mean_error(targets.joints.cpu(), output.joints.cpu()))
            vertices_mm.append(1000 * metrics.pa_rigid_mean_error(targets.vertices.cpu(), output.vertices.cpu()))
            scale, translation = output.camera[:, :1, None], output.camera[:, None, 1:]
            keypoints = scale * (output.joints[..., :2] + translation)
            keypoints_box.append(metrics.keypoint_box_error(targets.keypoints.cpu(), keypoints.cpu()))
            # The palm's normal is the hand's own -y axis: does it face the right way?
            normals = (output.pose[:, 0, :, 1] * targets.pose[:, 0, :, 1]).sum(dim=-1)
            flipped.append((normals < 0).cpu().numpy())
            truths.append(((targets.joints - targets.joints[:, :1]) @ targets.pose[:, 0]).cpu().numpy())
        name = "upright" if upright else "any_turn"
        scores[f"{name}_pa_mpjpe_mm"] = float(np.concatenate(joints_mm).mean())
        scores[f"{name}_pa_mpvpe_mm"] = float(np.concatenate(vertices_mm).mean())
        scores[f"{name}_keypoint_box_error"] = float(np.concatenate(keypoints_box).mean())
        scores[f"{name}_palm_flipped_share"] = float(np.concatenate(flipped).mean())
        truth = np.concatenate(truths)
        scores["constant_hand_pa_mpjpe_mm"] = float(
            1000 * metrics.pa_rigid_mean_error(truth, truth.mean(axis=0)).mean()
        )
    return scores


def write_run_record(config: TrainConfig, directory: Path) -> None:
    """`config.yaml` with every setting, and `environment.json`: what ran this."""
    (directory / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    environment: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _git_commit(),
    }
    (directory / "environment.json").write_text(json.dumps(environment, indent=2))


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git on this machine
    return answer.stdout.strip()


def _append(path: Path, record: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _rewind(path: Path, step: int) -> None:
    """Drop the records after `step`, and half a line at the end: a run that goes on from there writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            logger.warning("%s: a damaged line is dropped", path)
    with written_atomically(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _timed(batches: Iterator[HandBatch], first_step: int) -> Iterator[tuple[int, HandBatch, float]]:
    """(step, batch, seconds waited for it)."""
    step = first_step
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield step, batch, time.perf_counter() - started
        step += 1
