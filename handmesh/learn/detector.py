"""Training the detector of hands: the loss, the loop, and what a run is judged by.

A run lives in one directory, as those of `handmesh.learn.train`: config.yaml, metrics.jsonl, the newest states, and
the averaged weights as `detector.onnx`, which is what a `HandDetector` opens. Several processes, started by torchrun,
make one run.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from handmesh.config.detector import DetectorConfig
from handmesh.data.cut_outs import CutOuts
from handmesh.data.loader import say_if_loader_is_killed, start_loader
from handmesh.data.scenes import DetectorSample, SceneMixture, SceneRecord, read_scenes
from handmesh.data.sources import training_pack
from handmesh.errors import CheckpointError, ConfigError, DataError
from handmesh.files.image import read_image
from handmesh.hand import Handedness
from handmesh.hand.grid import GridTarget, decode, fitted, in_image
from handmesh.learn.distributed import Ranks, joined_ranks, parallel
from handmesh.learn.optimizer import make_optimizer, set_learning_rate, takes_bfloat16, update_average
from handmesh.learn.resume import open_run
from handmesh.learn.run_folder import RunLog, describe_data, describe_weights, write_run_record
from handmesh.metrics import match_boxes
from handmesh.model.bundled import find_model
from handmesh.model.checkpoint import load_model, save_state
from handmesh.model.detector import HandDetectorNet
from handmesh.model.network import to_device
from handmesh.runtime.detector_graph import DETECTOR_SUFFIX, weights_in, write_detector
from handmesh.synth.dataset import Progress
from handmesh.system.allocator import keep_freed_memory
from handmesh.system.cpus import checked_threads

logger = logging.getLogger(__name__)

FOUND_IOU = 0.5  # intersection over union of a box that counts as found
FOUND_SCORE = 0.5


class DetectorBatch(NamedTuple):
    """B pictures of S px, h = w = S / 8 cells."""

    image: Tensor  # (B, S, S, 3) uint8
    target: GridTarget  # of tensors, each with B in front
    weight: Tensor  # (B, h, w)


def label_counts(target: Any, weight: Tensor) -> dict[str, Tensor]:
    """What the parts of the loss are divided by: the batch's hands, and the cells around their middles; scalars."""
    return {"hands": (_at_middle(target) * weight).sum(), "cells": (target.taught * weight).sum()}


def detector_loss(
    grid: Tensor, target: Any, weight: Tensor, counts: Mapping[str, Tensor] | None = None, pieces: int = 1
) -> dict[str, Tensor]:
    """(B, 8, h, w) answers against the targets -> the mean of each part over the batch's hands.

    `counts`: where this is one of several `pieces` of the batch, the mean of their `label_counts`; then the mean of
    their losses is that of the batch.

    center: CenterNet's focal loss (Zhou et al., "Objects as Points", equation 1, alpha 2 and beta 4). box: 1 minus the
    generalised IoU (Rezatofighi et al., CVPR 2019). direction: 1 minus the cosine of the angle between. handedness:
    cross-entropy. The last three over the cells around each hand's middle, by their nearness to it.
    """
    logits, wanted = grid[:, 0], target.center
    probability = logits.sigmoid()
    at_middle = _at_middle(target)
    found = at_middle * (1 - probability) ** 2 * F.logsigmoid(logits)
    empty = (1 - at_middle) * (1 - wanted) ** 4 * probability**2 * F.logsigmoid(-logits)
    taught = target.taught * weight
    divisors = label_counts(target, weight) if counts is None else counts
    hands, cells = (divisors[name].clamp(min=1 / pieces) for name in ("hands", "cells"))
    sides, wanted_sides = grid[:, 1:5].clamp(-3, 6).exp(), target.box.exp()
    direction = F.normalize(grid[:, 5:7], dim=1, eps=1e-3)
    right = F.binary_cross_entropy_with_logits(grid[:, 7], target.right, reduction="none")
    return {
        "center": -((found + empty) * weight).sum() / hands,
        "box": ((1 - _generalised_iou(sides, wanted_sides)) * taught).sum() / cells,
        "direction": ((1 - (direction * target.direction).sum(dim=1)) * taught).sum() / cells,
        "handedness": (right * taught).sum() / cells,
    }


def _at_middle(target: Any) -> Tensor:
    """1 in the cells of the hands' middles, else 0."""
    return (target.center > 0.999).float()


def _generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """(B, 4, h, w) distances left, up, right, down of two boxes around one point each -> (B, h, w)."""
    both = torch.minimum(first, second)
    around = torch.maximum(first, second)
    shared, hull, own, other = (
        (box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (both, around, first, second)
    )
    union = own + other - shared
    return shared / union - (hull - union) / hull


def train_detector(
    config: DetectorConfig,
    directory: Path,
    *,
    resume: bool = False,
    on_progress: Callable[[int, int, dict[str, float], float], None] = lambda *_: None,
    on_render: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """Train and return the path of the detector. `on_progress` gets step, steps, mean losses and pictures a second.

    Raises ConfigError, DataError, CheckpointError. Without `resume` the directory must not hold a run already; with it,
    one with these settings, but for where files lie and how it is watched and fed.
    """
    with say_if_loader_is_killed(), joined_ranks() as ranks, ExitStack() as held:
        _set_up(config, ranks)
        state = open_run(config, directory, resume, ranks, held)
        # What may be wrong first: rendering takes minutes.
        validation = [record for source in config.validation for record in read_scenes(source.path)]
        torch.manual_seed(config.seed)
        model = to_device(HandDetectorNet(config.detector), ranks.device)
        if state is None and config.start_from is not None:
            start_weights(model, config.start_from)
        mixture = ranks.run_on_main(lambda: _open(config, on_render)) or _open(config, None)
        if config.frozen_stem:
            model.patch_embed.requires_grad_(False)
        averaged = copy.deepcopy(model).eval().requires_grad_(False)
        average = averaged.state_dict()
        optimizer = make_optimizer(config, model)
        first = 0
        if state is not None:
            first = state["step"]
            model.load_state_dict(state["model"])
            averaged.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            logger.info("resuming at step %d of %d", first, config.steps)
        if ranks.is_main:
            start = None if state is not None else _describe_start(config.start_from)
            write_run_record(config, directory, ranks.count, describe_data(mixture.files()), start)
        log = RunLog(directory, first, tensorboard=False) if ranks.is_main else None
        if takes_bfloat16(config, ranks.device):
            model.train_perceptrons_in_bfloat16()
        network = parallel(model, ranks)
        model.train()

        def save(done: int) -> None:
            state = {
                "step": done,
                "config": config.model_dump(mode="json"),
                "model": model.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
            }
            save_state(directory, done, state, config.keep_checkpoints)

        sums: dict[str, Tensor] = {}
        started, since = time.perf_counter(), first
        for step, batch in enumerate(_batches(mixture, config, first, ranks), first):
            done = step + 1
            stopped = any(ranks.gather(bool(should_stop and should_stop()))) if done % 10 == 0 else False
            last = done == config.steps or stopped
            set_learning_rate(optimizer, config, step)
            counts = ranks.mean(label_counts(batch.target, batch.weight))
            parts = detector_loss(network(batch.image), batch.target, batch.weight, counts, ranks.count)
            weights = config.loss.model_dump()
            loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or math.inf)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise DataError(f"The loss is {loss.item()} at step {step}: lower optimizer.learning_rate.")
            optimizer.step()
            update_average(average, model, step, config.optimizer.ema_decay)
            for name, value in {**parts, "total": loss}.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach()
            if done % config.log_every == 0 or last:
                means = {name: value.item() / (done - since) for name, value in ranks.mean(sums).items()}
                speed = (done - since) * config.batch_size / (time.perf_counter() - started)
                if log is not None:
                    rate = optimizer.param_groups[0]["lr"]
                    log.add(done, {**means, "img_s": speed, "learning_rate": rate}, "training")
                    on_progress(done, config.steps, means, speed)
                sums, started, since = {}, time.perf_counter(), done
            unfinished = stopped and done < config.steps
            if unfinished and ranks.is_main:
                save(done)  # whoever stopped it may not wait for the scores: torchrun waits for 30 s
            if ranks.is_main and (done % config.evaluate_every == 0 or last):
                scores = detection_scores(averaged, validation, config.validation_side) if validation else {}
                if log is not None and scores:
                    log.add(done, {"validation": scores}, "validation")
                    logger.info("step %d  validation: %s", done, "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
                training = {"steps": done, "pictures": done * config.batch_size, "scores": scores}
                write_detector(directory / f"detector{DETECTOR_SUFFIX}", averaged, training)
            # Last: who resumes from a state finds all that its step should have written.
            if ranks.is_main and not unfinished and (done % config.checkpoint_every == 0 or last):
                save(done)
            if last:
                break
        if log is not None:
            log.close()
        ranks.barrier()
    return directory / f"detector{DETECTOR_SUFFIX}"


def start_weights(model: HandDetectorNet, name: str) -> None:
    """The trunk of a hand mesh model, or all of a detector (.onnx). Raises CheckpointError."""
    path = _start_file(name)
    if path.suffix == DETECTOR_SUFFIX:
        weights = weights_in(path)
        try:
            model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{name} is a detector of other settings: {str(error).splitlines()[0]}") from None
        return
    start, _ = load_model(path)
    model.start_from(start.backbone.reparameterize().state_dict())


def _start_file(name: str) -> Path:
    """Of a detector's path, or of what `find_model` finds."""
    return Path(name) if name.endswith(DETECTOR_SUFFIX) else find_model(name)


def _describe_start(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"start_from": describe_weights(name, _start_file(name))}


@torch.no_grad()
def detection_scores(model: HandDetectorNet, records: list[SceneRecord], side: int) -> dict[str, float]:
    """Recall of the listed hands at IoU 0.5 and a score of 0.5, sides right among those, and false hands.

    false_per_photo: hands in photographs that are known to have none, at that score. A hand that no complete list has
    is not counted: incomplete lists say nothing about what they lack.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    found, right, hands, false, empty = 0, 0, 0, 0, 0
    for record in records:
        image = read_image(record.image)
        picture, scale = fitted(image, side)
        grid = model(torch.from_numpy(picture)[None].to(device))[0].cpu().numpy()
        answers = [(in_image(hand.box, scale), hand.right) for hand in decode(grid, FOUND_SCORE)]
        truth = [((*keypoints.min(axis=0), *keypoints.max(axis=0)), side) for keypoints, side in record.hands]
        pairs = match_boxes([box for box, _ in truth], [box for box, _ in answers], FOUND_IOU)
        hands += len(truth)
        found += len(pairs)
        right += sum((answers[b][1] > 0.5) == (truth[a][1] == Handedness.RIGHT) for a, b in pairs)
        if record.complete and not record.hands:
            empty, false = empty + 1, false + len(answers)
    scores = {"recall": found / max(hands, 1), "sides_right": right / max(found, 1)}
    return scores | ({"false_per_photo": false / empty} if empty else {})


def _set_up(config: DetectorConfig, ranks: Ranks) -> None:
    if config.batch_size % ranks.count:
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared by {ranks.count} processes.")
    if ranks.device.type == "cpu":
        torch.set_num_threads(checked_threads(config.threads))
        keep_freed_memory()
    cv2.setNumThreads(0)


def _open(config: DetectorConfig, on_render: Progress | None) -> SceneMixture:
    data = config.data
    # Photographs first: what is wrong with them is known in seconds, while rendering takes minutes.
    sources = tuple((source, read_scenes(source.path)) for source in data.scenes)
    if data.cut_outs:
        CutOuts(data.cut_outs).draw(np.random.default_rng(config.seed))
    pack = training_pack(data.synthetic, on_render) if data.synthetic is not None else None
    return SceneMixture(data, config.resolution, config.seed, pack, sources)


class _Stream(Dataset[DetectorSample]):
    def __init__(self, mixture: SceneMixture) -> None:
        self.mixture = mixture

    def __getitem__(self, g: int) -> DetectorSample:
        return self.mixture[g]


def _batches(mixture: SceneMixture, config: DetectorConfig, first: int, ranks: Ranks) -> Iterator[DetectorBatch]:
    share = config.batch_size // ranks.count
    start = [step * config.batch_size + ranks.index * share for step in range(first, config.steps)]
    loader = DataLoader(
        _Stream(mixture),
        batch_size=share,
        sampler=[begin + index for begin in start for index in range(share)],
        num_workers=config.loader_workers,
        prefetch_factor=4 if config.loader_workers else None,
        collate_fn=_collate,
        worker_init_fn=start_loader,
    )
    for batch in loader:
        image, *rest = (tensor.to(ranks.device) for tensor in batch)
        yield DetectorBatch(image, GridTarget(*rest[:-1]), rest[-1])


def _collate(samples: list[DetectorSample]) -> list[Tensor]:
    rows = [(sample.image, *sample.target, sample.weight) for sample in samples]
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
