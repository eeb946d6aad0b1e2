"""Reading published FastViT weights into a backbone: Apple's checkpoints, timm's, and our own.

Apple releases every variant plain and distilled, each in train-time form (``fastvit_t8.pth.tar``) and in
reparameterized form (``fastvit_t8_reparam.pth.tar``). timm keeps the train-time form under its own names. All of them
hold a classifier of 1000 ImageNet classes, which a backbone without classifier leaves out. A reparameterized checkpoint
is for inference: it loads only into a reparameterized backbone, so that nobody fine-tunes a network that has lost its
branches and batch norms.
"""

import argparse
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from handmesh.errors import CheckpointError
from handmesh.model.backbone import Backbone
from handmesh.model.fastvit import VARIANTS, FastViT, build_backbone, fold_branches, fold_residuals

logger = logging.getLogger(__name__)

APPLE_URL = "https://docs-assets.developer.apple.com/ml-research/models/fastvit"
TIMM_URL = "https://huggingface.co/timm"
LICENCE_URL = "https://github.com/apple/ml-fastvit/blob/main/LICENSE"
CLASSIFIER = ("head.weight", "head.bias")
LISTED_KEYS = 12  # of each kind in an error; the rest are counted


def load_backbone_weights(backbone: Backbone, source: Path | str | Mapping[str, Tensor]) -> None:
    """Load weights in place: a file (.pth.tar, .pth, .pt, .bin or .safetensors) or a state dict.

    The names may be Apple's or timm's, with or without a classifier. Every weight is used, except a classifier that the
    backbone does not have. Pickled files are read with ``weights_only=True``: they cannot run code. Raises
    CheckpointError, and leaves the backbone as it was, if the file is missing, damaged or hostile, or if its weights
    belong to another variant or to the other form (train-time or reparameterized).
    """
    if not isinstance(backbone, FastViT):
        raise CheckpointError(f"Published weights are of FastViT, and this backbone is {backbone.name}.")
    if isinstance(source, Mapping):
        origin, weights = "The state dict", dict(source)
    else:
        origin, weights = str(source), read_weights(Path(source), backbone.name)
    _check_values(origin, weights)
    if has_timm_names(weights):
        weights = apple_from_timm(weights)
    if backbone.num_classes == 0:
        weights = {key: value for key, value in weights.items() if key not in CLASSIFIER}

    ours = backbone.state_dict()
    if backbone.reparameterized and weights.keys() != ours.keys():  # not our own reparameterized form
        if not is_reparameterized(weights):
            raise CheckpointError(
                f"{origin} holds the train-time form, and this backbone is reparameterized. "
                "Load it into build_backbone(...), then call reparameterize()."
            )
        weights = _fold_completely(backbone, origin, weights)
    elif not backbone.reparameterized and is_reparameterized(weights):
        raise CheckpointError(
            f"{origin} holds the reparameterized form, for inference only: its branches and batch norms are gone, and "
            f"this backbone has them. To train, get the file without '_reparam' in its name "
            f"({APPLE_URL}/image_classification_models/{backbone.name}.pth.tar); "
            "to predict, load it into build_backbone(...).reparameterize()."
        )
    _check_fit(backbone, origin, weights, ours)
    backbone.load_state_dict(weights, strict=True)


class RecognisedWeights(NamedTuple):
    """Published weights under Apple's names, unchanged otherwise, and what they turned out to be."""

    weights: dict[str, Tensor]
    variant: str  # one of `VARIANTS`
    reparameterized: bool  # Apple's reparameterized form, for inference only
    num_classes: int  # of their classifier; 0 without one
    naming: Literal["Apple", "timm"]  # whose names the file has


def recognise_weights(path: Path) -> RecognisedWeights:
    """Read a published checkpoint of whichever variant, and find out which it is. Strict: every weight must belong.

    Raises CheckpointError for what `load_backbone_weights` refuses, and for weights that fit no variant.
    """
    weights = read_weights(path)
    _check_values(str(path), weights)
    timm = has_timm_names(weights)
    if timm:
        weights = apple_from_timm(weights)
    head = weights.get(CLASSIFIER[0])
    num_classes = len(head) if head is not None and head.dim() == 2 else 0
    variant = _variant_of(weights)
    candidate = variant or _nearest_variant(weights)
    with torch.device("meta"), torch.no_grad():
        template = build_backbone(candidate, num_classes=num_classes)
        if is_reparameterized(weights):
            fold_branches(template)
    _check_fit(template, str(path), weights, template.state_dict())
    return RecognisedWeights(weights, candidate, is_reparameterized(weights), num_classes, "timm" if timm else "Apple")


def read_weights(path: Path, name: str = "fastvit_ma36") -> dict[str, Tensor]:
    """The state dict in a checkpoint file. name: the variant that a message about a missing file should speak of."""
    if not path.is_file():
        raise CheckpointError(where_to_get_weights(path, name))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Training scripts leave their command-line settings beside the weights; a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds something besides tensors and plain values, "
            "which could run code when read. Get the file from its publisher again."
        ) from error
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error}). Get the file again.") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            if isinstance(content.get(f"{key}_ema"), Mapping):
                logger.warning("%s holds '%s' and its average '%s_ema': the first is taken", path, key, key)
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no weights (found: {found}); wanted a state dict, or one as 'state_dict'.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}  # of DistributedDataParallel


def where_to_get_weights(path: Path, name: str) -> str:
    """What to do when there is no file at path: which files exist, who publishes them, what to type."""
    return f"""There are no weights at {path}. {published_weights_page(name)} Then, for example, type
  curl -L -o {path} {APPLE_URL}/image_classification_models/{name}.pth.tar
and run the same command again."""


def published_weights_page(name: str) -> str:
    """Which files of a variant exist, who publishes them, and under which licence."""
    return f"""FastViT weights trained on ImageNet are published by their owners:
  Apple, train-time form, for training:   {APPLE_URL}/image_classification_models/{name}.pth.tar
  Apple, reparameterized form, for inference only: {APPLE_URL}/image_classification_models/{name}_reparam.pth.tar
  Apple, distilled: the same two names under {APPLE_URL}/image_classification_distilled_models/
  timm, train-time form: model.safetensors of {TIMM_URL}/{name}.apple_in1k or {TIMM_URL}/{name}.apple_dist_in1k
Read their licence first ({LICENCE_URL})."""


def is_reparameterized(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict with Apple's names, or our own, is of a reparameterized network."""
    return any("reparam" in key for key in weights)


def has_timm_names(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state dict are timm's."""
    return any(key.startswith(("stem.", "stages.")) for key in weights)


def _check_values(origin: str, weights: Mapping[str, object]) -> None:
    """Raise CheckpointError unless every weight is a tensor of finite numbers."""
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{origin}: {key!r} is a {type(value).__name__}; every weight must be a tensor.")
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{origin}: {key!r} has values that are not finite; the file is damaged.")


# --- timm's names -----------------------------------------------------------------------------------------------------

_FROM_TIMM = (
    (r"^stem\.", "patch_embed."),
    (r"^final_conv\.", "conv_exp."),
    (r"^head\.fc\.", "head."),
    (r"^(network\.\d+\.proj\.0)\.reparam_conv\.", r"\1.lkb_reparam."),
    (r"\.pos_enc\.", ".pe."),
    (r"\.large_conv\.", ".lkb_origin."),
    (r"\.conv_kxk\.", ".rbr_conv."),
    (r"\.conv_scale\.", ".rbr_scale."),
    (r"\.identity\.", ".rbr_skip."),
    (r"\.mlp\.", ".convffn."),
    (r"\.(layer_scale(_\d)?)\.gamma$", r".\1"),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
)


def apple_from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under Apple's names."""
    last_stage = 7 if any(".pos_emb." in key for key in weights) else 6  # index 6 is the positional encoding
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = re.sub(r"^stages\.([012])\.blocks\.", lambda stage: f"network.{2 * int(stage[1])}.", key)
        name = re.sub(r"^stages\.([123])\.downsample\.", lambda stage: f"network.{2 * int(stage[1]) - 1}.", name)
        name = re.sub(r"^stages\.3\.blocks\.", f"network.{last_stage}.", name)
        name = re.sub(r"^stages\.3\.pos_emb\.", "network.6.", name)
        for pattern, replacement in _FROM_TIMM:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


# --- Fitting a backbone -----------------------------------------------------------------------------------------------


def _fold_completely(backbone: FastViT, origin: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apple's reparameterized form -> ours, where batch norms and layer scales are reparameterized too."""
    template = build_backbone(backbone.name, num_classes=backbone.num_classes).eval()
    with torch.no_grad():
        fold_branches(template)
        _check_fit(backbone, origin, weights, template.state_dict())
        template.load_state_dict(weights, strict=True)
        fold_residuals(template)
    return template.state_dict()


def _check_fit(backbone: FastViT, origin: str, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes agree."""
    problems: list[str] = []
    if missing := [key for key in wanted if key not in weights]:
        problems.append(f"it lacks {_list(missing)}")
    if unknown := [key for key in weights if key not in wanted]:
        problems.append(f"it has the unknown {_list(unknown)}")
    other = [
        f"{key} {tuple(weights[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    if other:
        problems.append(f"these shapes differ: {_list(other)}")
    if not problems:
        return
    variant = _variant_of(weights)
    if variant is not None and variant != backbone.name:  # a list of hundreds of keys would say no more
        raise CheckpointError(f"{origin} does not fit {backbone.name}. They fit {variant}: build that backbone.")
    advice = ""
    if any(key in " ".join(other + missing) for key in CLASSIFIER):
        advice = f"The backbone has a classifier of {backbone.num_classes} classes: build it with num_classes=0."
    raise CheckpointError(f"{origin} does not fit {backbone.name}: {'; '.join(problems)}. {advice}".rstrip())


def _list(names: list[str]) -> str:
    more = len(names) - LISTED_KEYS
    return ", ".join(names[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _variant_of(weights: Mapping[str, Tensor]) -> str | None:
    """The variant whose names and shapes these weights have, classifier aside."""
    shapes = {key: value.shape for key, value in weights.items() if key not in CLASSIFIER}
    return next((name for name in VARIANTS if _shapes_of(name, is_reparameterized(weights)) == shapes), None)


def _nearest_variant(weights: Mapping[str, Tensor]) -> str:
    """The variant that these weights have most in common with, for a message about the rest."""
    shapes = {(key, value.shape) for key, value in weights.items()}
    return max(VARIANTS, key=lambda name: len(shapes & _shapes_of(name, is_reparameterized(weights)).items()))


def _shapes_of(name: str, reparameterized: bool) -> dict[str, torch.Size]:
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(name)
        if reparameterized:
            fold_branches(backbone)
    return {key: value.shape for key, value in backbone.state_dict().items()}
