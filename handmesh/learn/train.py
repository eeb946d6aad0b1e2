"""Training: one loop, visible from top to bottom.

A run lives in one directory: its record (`handmesh.learn.run_folder`), the newest training states, and the averaged
weights of the chosen evaluation, twice: `model.safetensors` as trained, and `deploy.safetensors`, reparameterized and
in float16, which is what the package ships of its own run. Starting again with `resume` goes on where the newest
readable state stopped, with the same examples and the same numbers.

Several processes, started by torchrun, make one run: see `handmesh.learn.distributed`.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from handmesh.config.data import CroppedData
from handmesh.config.load import load_config
from handmesh.config.train import TrainConfig
from handmesh.data.live import live_batches
from handmesh.data.loader import say_if_loader_is_killed
from handmesh.data.sources import RunData, open_data
from handmesh.data.stream import HandBatch, batch_to_device, collate, split, training_batches
from handmesh.errors import CheckpointError, ConfigError, DataError
from handmesh.hand import HandArrays, HandOutput
from handmesh.hand.layer import HandModel
from handmesh.hand.models import load_hand
from handmesh.learn.distributed import Ranks, joined_ranks, no_sync, parallel, sync_batch_norms
from handmesh.learn.losses import distance_sums, hand_loss, label_counts
from handmesh.learn.optimizer import make_optimizer, set_learning_rate, takes_bfloat16, update_average
from handmesh.learn.resume import open_run
from handmesh.learn.run_folder import RunLog, describe_data, describe_start, write_json, write_run_record
from handmesh.learn.targets import make_targets
from handmesh.learn.trackers import find_tracker, open_tracker
from handmesh.learn.validation import TEST_SET, draw_samples, relative_error, selection_score, validate
from handmesh.model.bundled import find_model
from handmesh.model.checkpoint import load_model, load_weights, save_state
from handmesh.model.fastvit_weights import load_backbone_weights
from handmesh.model.file import config_of, read_record
from handmesh.model.network import DenseHead, DenseMaps, HandMeshNet, to_device
from handmesh.model.pretrained import find_backbone_weights
from handmesh.model.surgery.grow import check_growth, grow
from handmesh.model.surgery.unreparameterize import unreparameterize
from handmesh.runtime.graph import write_with_graph
from handmesh.synth.dataset import Progress
from handmesh.system.allocator import keep_freed_memory
from handmesh.system.cpus import checked_threads
from handmesh.system.spawn import end_if_imported

logger = logging.getLogger(__name__)

# What drop path draws in a step depends on (seed, this, step, process): nothing to remember when a run goes on.
_DROP_PATH_STREAM = 6
_NORM_BATCHES = 16  # of 32 samples, to measure batch-norm statistics on
_STEPS_BETWEEN_AGREEMENTS = 10  # of several processes, on whether to stop
_OPTIONAL_HEADS = (
    "confidence_head.",
    "handedness_head.",
    "joint_confidence_head.",
    "token_head.",
    "keypoint_head.",
)


@dataclass(frozen=True)
class Progressed:
    """What the loop tells whoever is watching, every `log_every` steps."""

    step: int
    steps: int  # of the whole run
    losses: dict[str, float]  # means since the last report, per coordinate; "total" is the weighted sum
    keypoint_px: float | None  # mean distance of the keypoints, in the crop; None where none are labelled
    vertex_mm: float | None  # mean distance of the vertices, wrists on each other; None where none are labelled
    images_per_second: float
    data_wait_fraction: float  # of the time since the last report that was spent waiting for data


class TrainingModule(nn.Module):
    """The network, and the head that helps it learn if a loss asks for that: what is run and differentiated."""

    def __init__(self, model: HandMeshNet, dense: DenseHead | None) -> None:
        super().__init__()
        self.model, self.dense = model, dense

    def forward(self, images: Tensor) -> tuple[HandOutput, DenseMaps | None]:
        output: tuple[HandOutput, DenseMaps | None] = self.model.forward_with_maps(images, self.dense)
        return output


def train(
    config: TrainConfig,
    directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_progress: Callable[[Progressed], None] = lambda _: None,
    on_render: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    tracker: str | None = None,
) -> Path:
    """Train and return the path of the averaged model.

    Raises ConfigError, DataError, CheckpointError, or AssetError where MANO is asked for and was not added. Without
    `resume` the directory must not hold a run already: nothing is overwritten by accident. Started by torchrun, every
    process calls this; the first one writes and reports, and `directory` must be the same place for all.

    `should_stop` is asked in every step: once it says yes the run scores, saves and ends there, to be gone on with
    later as if it had never stopped. `tracker`: one of `handmesh.learn.trackers`, told what metrics.jsonl is.
    """
    end_if_imported()
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"The settings are of type {type(config).__name__}, wanted what load_config gives.")
    directory = Path(directory)
    with say_if_loader_is_killed(), joined_ranks() as ranks, ExitStack() as stack:
        config = with_architecture(config, directory if resume else None)
        settings, device = config.model_dump(mode="json"), ranks.device
        _set_up(config, ranks)
        hand = ranks.run_on_main(lambda: load_hand(config.model.hand)) or load_hand(config.model.hand)
        state = open_run(config, directory, resume, ranks, stack)
        if state is not None:
            ranks.run_on_main(lambda: _check_hand(state, config, directory, hand))
        if tracker is not None:  # before hours of rendering, too
            ranks.run_on_main(lambda: find_tracker(tracker))
        if state is None or config.average_with_start:  # which comes back to it in the end
            ranks.run_on_main(lambda: _check_start(config))
        data = _open_data(config, hand, ranks, on_render)
        config = config.model_copy(update={"steps": count_steps(config, data)})
        if ranks.is_main:
            learns_from = describe_data((source.name, len(source), source.files()) for source in data.sources)
            start = describe_start(config, hand) if state is None else None
            write_run_record(config, directory, ranks.count, learns_from, start)

        torch.manual_seed(config.seed)
        model = to_device(build_network(config, hand), device)
        if state is None:
            start_weights(model, config, data)
        dense = to_device(DenseHead(model.backbone.pyramid_channels), device) if _wants_dense(config) else None
        module = TrainingModule(model, dense)
        averaged = copy.deepcopy(model).eval().requires_grad_(False)
        average = averaged.state_dict()  # the very tensors of `averaged`
        optimizer = make_optimizer(config, module)
        first_step, best, warm_again_at = 0, math.inf, None
        if state is not None:
            first_step, best = state["step"], state.get("best", math.inf)
            warm_again_at = state.get("warm_again_at")  # of a state that came without its optimiser
            model.load_state_dict(state["model"])
            averaged.load_state_dict(state["average"])
            if dense is not None:
                dense.load_state_dict(state["dense"])
            if state["optimizer"] is not None:
                optimizer.load_state_dict(state["optimizer"])
            logger.info("resuming at step %d of %d", first_step, config.steps)
        log = None
        if ranks.is_main:
            tracked = None if tracker is None else open_tracker(tracker, config, directory)
            log = RunLog(directory, first_step, tensorboard=config.tensorboard, tracker=tracked)
        if state is None and config.start_from is not None and data.validation:
            scores = validate(averaged, data.validation, ranks)  # what the run has to be better than
            if log is not None:
                _report(log, 0, scores, averaged, data)

        autocast: AbstractContextManager[Any] = nullcontext()
        if device.type == "cpu" and config.precision == "bfloat16":
            model.backbone.train_perceptrons_in_bfloat16(takes_bfloat16(config, device))
        elif config.precision != "float32":
            autocast = torch.autocast(device.type, getattr(torch, config.precision))
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        if state is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        sync_batch_norms(module, ranks)
        if config.compile:
            module.compile()
        network = parallel(module, ranks)
        clip_norm = math.inf if config.optimizer.clip_norm is None else config.optimizer.clip_norm

        faces = torch.from_numpy(hand.faces).long().to(device)

        def save(done: int) -> None:
            state = {
                "step": done,
                "config": settings,
                "hand_sha256": hand.sha256,
                "model": model.state_dict(),
                "dense": {} if dense is None else dense.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "average": average,
                "best": best,
                "warm_again_at": warm_again_at,
            }
            save_state(directory, done, state, config.keep_checkpoints)

        sums: dict[str, Tensor] = {}
        distances: dict[str, Tensor] = {}
        started, waited, since = time.perf_counter(), 0.0, first_step
        module.train()
        if config.data.live is not None:
            batches = live_batches(config, hand, device, first_step)
        else:
            batches = training_batches(data.sources, config, first_step, ranks.index, ranks.count)
        stack.enter_context(closing(batches))
        for step, batch, wait in _timed(batches, first_step):
            done = step + 1
            last = done == config.steps or _is_stopped(should_stop, done, ranks)
            logs, evaluates, saves = (
                done % every == 0 or last
                for every in (config.log_every, config.evaluate_every, config.checkpoint_every)
            )
            set_learning_rate(optimizer, config, step, warm_again_at)
            torch.manual_seed(_drop_path_seed(config, step, ranks))
            batch = batch_to_device(batch, device)
            batch = batch._replace(labels=make_targets(batch.labels, model.hand))
            counts = ranks.mean(label_counts(batch.labels))
            optimizer.zero_grad(set_to_none=True)
            for number, piece in enumerate(split(batch, config.accumulation), start=1):
                with no_sync(network) if number < config.accumulation else nullcontext():
                    with autocast:
                        output, heatmaps = network(piece.image)
                    known = piece.labels
                    loss, parts = hand_loss(output, heatmaps, known, config.loss, config.loss_norms, counts, faces)
                    scaler.scale(loss).backward()
                _add(sums, {**parts, "total": loss})
                _add(distances, distance_sums(output, piece.labels, piece.image.shape[1]))
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            if scaler.is_enabled():
                norm = _norm_of_scaled(norm, sums, scaler)
            _add(sums, {"gradient_norm": norm})
            # Before it gets into a state. On a GPU looking means waiting for it, so only where something is written.
            if device.type == "cpu" or logs or evaluates or saves:
                _check_finite(sums, loss, norm, step, directory)
            scaler.step(optimizer)  # not with gradients that overflowed
            scaler.update()
            update_average(average, model, step, config.optimizer.ema_decay)
            waited += wait

            if logs:
                count = done - since
                losses = {name: value.item() / count for name, value in ranks.mean(sums).items()}
                errors = _mean_distances(ranks.mean(distances))
                elapsed = time.perf_counter() - started
                images_per_second, data_wait_fraction = count * config.batch_size / elapsed, waited / elapsed
                if log is not None:
                    speed = {"img_s": images_per_second, "data_wait_fraction": data_wait_fraction}
                    rate = optimizer.param_groups[0]["lr"]
                    log.add(done, {**losses, **errors, **speed, "learning_rate": rate}, "training")
                    shown = errors.get("keypoint_px"), errors.get("vertex_mm")
                    on_progress(Progressed(done, config.steps, losses, *shown, images_per_second, data_wait_fraction))
                sums, distances, started, waited, since = {}, {}, time.perf_counter(), 0.0, done
            if last and done < config.steps and ranks.is_main:
                save(done)  # whoever stopped it may not wait for the scores: torchrun waits for 30 s
            if evaluates:
                scores = validate(averaged, data.validation, ranks)
                result = averaged
                if config.average_with_start and done == config.steps and scores:
                    result, scores = _better_with_start(averaged, scores, config, data, ranks)
                score = selection_score(scores, config.select)
                if config.select != "last" and math.isnan(score) and ranks.is_main:
                    logger.warning("no validation set has 3D joints to select by: the last weights become the model")
                if log is not None:
                    _report(log, done, scores, result, data)
                    if config.select == "last" or not score > best:
                        write_model(directory, result, config, done, scores)
                best = min(best, score)
                sums, distances, started, waited, since = {}, {}, time.perf_counter(), 0.0, done
            # Last: who resumes from a state finds all that its step should have written.
            if saves and ranks.is_main:
                save(done)
            if last:
                break
        if log is not None:
            log.close()
        ranks.barrier()
    return directory / "model.safetensors"


def with_architecture(config: TrainConfig, resumed: Path | None = None) -> TrainConfig:
    """The settings with those of `model` that they do not give taken from the model that they start from.

    A run that is `resumed`, in that folder, has these settings in its own record; it needs that model's file no more,
    but for `average_with_start`. Drop path is no part of a network. Raises CheckpointError, ConfigError.
    """
    if config.start_from is None:
        return config
    if resumed is not None and (resumed / "config.yaml").is_file():
        start = load_config(resumed / "config.yaml").model
    else:
        path = find_model(config.start_from)
        start = config_of(read_record(path), path)
    taken = start.model_dump(exclude=config.model.model_fields_set | {"drop_path"})
    return config.model_copy(update={"model": config.model.model_copy(update=taken)})


def count_steps(config: TrainConfig, data: RunData) -> int:
    """`steps`, or as many as `epochs` times all samples of all sources are."""
    if config.epochs is None:
        return config.steps
    return math.ceil(config.epochs * sum(map(len, data.sources)) / config.batch_size)


def build_network(config: TrainConfig, hand: HandArrays) -> HandMeshNet:
    """The network to train, with fresh weights."""
    model = HandMeshNet(config.model, HandModel(hand))
    return model.reparameterize().requires_grad_(True) if config.reparameterized else model


def start_weights(model: HandMeshNet, config: TrainConfig, data: RunData) -> None:
    """What a run begins with, if not with random numbers. Raises CheckpointError, ConfigError.

    The optional heads are taken over where both models have them; a smaller backbone grows into this one.
    """
    if config.pretrained is not None:
        load_backbone_weights(model.backbone, find_backbone_weights(config.pretrained))
    if config.start_from is None:
        return
    path = find_model(config.start_from)
    other, record = load_model(path)
    grows = other.config.backbone != config.model.backbone
    unreparameterizes = other.reparameterized and (grows or not model.reparameterized)
    pictures = list(_pictures(config, data)) if grows or unreparameterizes else []
    if unreparameterizes:
        other = unreparameterize(other, pictures)
    if grows:
        other = grow(other, config.model.backbone, pictures)
    if model.reparameterized:
        other = other.reparameterize()
    if record["hand_sha256"] != model.hand.sha256:
        logger.warning(
            "%s was trained with another hand (sha256 %s...): its poses carry over, its shapes do not",
            path,
            record["hand_sha256"][:12],
        )
    own = model.state_dict()
    fresh = {name: value for name, value in own.items() if name.startswith(_OPTIONAL_HEADS)}
    given = {
        name: value for name, value in other.state_dict().items() if name in own or not name.startswith(_OPTIONAL_HEADS)
    }
    load_weights(model, {**fresh, **given}, f"start_from: {path}")


def _better_with_start(
    averaged: HandMeshNet, scores: dict[str, float], config: TrainConfig, data: RunData, ranks: Ranks
) -> tuple[HandMeshNet, dict[str, float]]:
    """The tuned network or its mean with the one it started from, whichever has the smaller errors, each taken relative
    to the start's; with its scores. Optional heads stay tuned: the start may lack them.
    """
    mean = copy.deepcopy(averaged)
    start_weights(mean, config, data)
    before = validate(mean, data.validation, ranks)
    tuned = averaged.state_dict()
    weights = {
        name: tuned[name] if name.startswith(_OPTIONAL_HEADS) else (value + tuned[name]) / 2
        for name, value in mean.state_dict().items()
    }
    mean.load_state_dict(weights)
    of_mean = validate(mean, data.validation, ranks)
    errors = relative_error(scores, before), relative_error(of_mean, before)
    better = errors[1] < errors[0]
    if ranks.is_main:
        logger.info(
            "errors over those of the start: tuned %.3f, its mean with the start %.3f; the %s becomes the model",
            *errors,
            "mean" if better else "tuned one",
        )
    return (mean, of_mean) if better else (averaged, scores)


def _pictures(config: TrainConfig, data: RunData) -> Iterator[Tensor]:
    """A few batches like those to train on; those of the validation sets where training renders its own."""
    some = config.model_copy(update={"batch_size": 32, "steps": _NORM_BATCHES, "loader_workers": 0})
    if data.sources:
        yield from (batch.image for batch in training_batches(data.sources, some, 0))
        return
    for validation_set in data.validation:
        for start in range(0, len(validation_set), 32):
            numbers = range(start, min(start + 32, len(validation_set)))
            yield collate([validation_set.sample(number, config.model.resolution) for number in numbers]).image


def write_model(
    directory: Path, averaged: HandMeshNet, config: TrainConfig, steps: int, scores: dict[str, float]
) -> None:
    """The averaged weights as trained and ready to ship, each with its graph, and `scores.json`, why these."""
    training = {
        "steps": steps,
        "samples": steps * config.batch_size,
        "validation": scores,
        "crops": _crops(config),
        "selected_by": {"last": "last evaluation", "validation": "validation", TEST_SET: "test set"}[config.select],
    }
    write_with_graph(directory / "model.safetensors", averaged, training=training)
    write_with_graph(directory / "deploy.safetensors", averaged.reparameterize(), training=training, half=True)
    remark = (
        "The weights were chosen by the test set's scores: these and later scores on it do not compare with published "
        "ones."
        if config.select == TEST_SET
        else None
    )
    hand = {"name": config.model.hand, "sha256": averaged.hand.sha256}
    content = {"model": "model.safetensors", **training, "of_steps": config.steps, "hand": hand, "remark": remark}
    write_json(directory / "scores.json", content)


def _crops(config: TrainConfig) -> dict[str, str]:
    """The protocol that photographs were cropped by, source by source: scores are to be had under the same one.

    Whole pictures and boxes, both: the two of a protocol of two iterations.
    """
    freihand, photos = config.data.freihand, config.data.photos
    sources: dict[str, CroppedData] = {} if freihand is None else {"freihand": freihand}
    sources |= {f"photos{number}": source for number, source in enumerate(photos)}
    return {name: "-then-".join(sorted(source.crop_shares, key="box".__eq__)) for name, source in sources.items()}


def _is_stopped(should_stop: Callable[[], bool] | None, done: int, ranks: Ranks) -> bool:
    """Whether somebody asked to stop. Several processes have to agree, which costs time: not in every step."""
    if should_stop is None or (ranks.count > 1 and done % _STEPS_BETWEEN_AGREEMENTS):
        return False
    return any(ranks.gather(should_stop()))


def _check_start(config: TrainConfig) -> None:
    """Are the weights there that the run begins with? Asked before hours of rendering, not after."""
    if config.pretrained is not None:
        find_backbone_weights(config.pretrained)
    if config.start_from is not None:
        path = find_model(config.start_from)
        backbone = config_of(read_record(path), path).backbone
        if backbone != config.model.backbone:
            check_growth(backbone, config.model.backbone)


def _check_hand(state: dict[str, Any], config: TrainConfig, directory: Path, hand: HandArrays) -> None:
    """Is the state of a run with this hand?"""
    if state.get("hand_sha256") not in (None, hand.sha256):
        raise CheckpointError(
            f"{directory} was started with another hand (sha256 {state['hand_sha256'][:12]}...) than the one that is "
            f"now called {config.model.hand!r} ({hand.sha256[:12]}...): add that file again, or start with another "
            "--out."
        )


def _set_up(config: TrainConfig, ranks: Ranks) -> None:
    if config.data.live is not None and ranks.count > 1:
        raise ConfigError("data.live feeds one process: start this run without torchrun.")
    if config.batch_size % (ranks.count * config.accumulation):
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared by {ranks.count} processes with accumulation "
            f"{config.accumulation}: choose a multiple of {ranks.count * config.accumulation}."
        )
    _check_precision(config, ranks.device)
    if ranks.device.type == "cpu":
        torch.set_num_threads(checked_threads(config.threads))
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # all batches have one shape
    cv2.setNumThreads(0)


def _check_precision(config: TrainConfig, device: torch.device) -> None:
    """Can the card do it? PyTorch computes bfloat16 on any, on old ones many times slower."""
    if config.precision == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"precision: bfloat16 needs a GPU from Ampere on, and {torch.cuda.get_device_name(device)} is older: "
            "--set precision=float16."
        )


def _open_data(config: TrainConfig, hand: HandArrays, ranks: Ranks, on_render: Progress | None) -> RunData:
    """The first process renders what has to be rendered; the others then find it."""
    data = ranks.run_on_main(lambda: open_data(config, hand, on_render))
    return open_data(config, hand) if data is None else data


def _wants_dense(config: TrainConfig) -> bool:
    """Whether a `DenseHead` is needed that is no part of the network."""
    if config.model.keypoint_head:
        return False
    return any(getattr(config.loss, name) for name in ("heatmaps", "heatmap_keypoints", "heatmap_depths"))


def _drop_path_seed(config: TrainConfig, step: int, ranks: Ranks) -> int:
    sequence = np.random.SeedSequence((config.seed, _DROP_PATH_STREAM, step, ranks.index))
    return int(sequence.generate_state(1)[0])


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        number = value.detach().double()
        sums[name] = sums[name] + number if name in sums else number


def _norm_of_scaled(norm: Tensor, sums: dict[str, Tensor], scaler: torch.amp.GradScaler) -> Tensor:
    """A gradient that overflowed is left out, and counted: the loss's scale is halved for the next step. At a scale
    below 1 it is the loss itself.
    """
    overflowed = ~torch.isfinite(norm)
    _add(sums, {"skipped_steps": overflowed})
    return norm if scaler.get_scale() < 1 else torch.where(overflowed, 0.0, norm)


def _mean_distances(sums: dict[str, Tensor]) -> dict[str, float]:
    """Of `distance_sums`, those of which anything was labelled."""
    pairs = (("keypoint_px", "keypoints"), ("vertex_mm", "vertices"))
    return {name: (sums[name] / sums[count]).item() for name, count in pairs if sums[count] > 0}


def _check_finite(sums: dict[str, Tensor], loss: Tensor, norm: Tensor, step: int, directory: Path) -> None:
    if not (torch.isfinite(sums["total"]) and torch.isfinite(sums["gradient_norm"])):
        raise DataError(
            f"The loss is {loss.item()} and its gradient's norm {norm.item()} at step {step}. The states in "
            f"{directory} are from before: lower optimizer.learning_rate, or look at the data with "
            "`handmesh data show` or `handmesh synth --sheet`."
        )


def _report(log: RunLog, step: int, scores: dict[str, float], averaged: HandMeshNet, data: RunData) -> None:
    log.add(step, {"validation": scores}, "validation")
    logger.info("step %d  validation: %s", step, "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    if log.draws():
        for validation_set in data.validation:
            log.add_picture(step, validation_set.name, draw_samples(averaged, validation_set))


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
