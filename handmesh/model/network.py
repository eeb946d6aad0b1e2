"""The network: normalise -> backbone -> global average pool -> three single fully connected heads -> hand model.

`model.token_head` puts a second head behind those three (`handmesh.model.token_head`); the paper has none.
`HandMeshNet` is what is trained, saved and exported. `DenseHead` reads the backbone's stage maps and predicts where
each joint is, so that early features learn to see fingers. It helps in training only, and no output depends on it,
unless the network keeps it as its `keypoint_head`: then `HandOutput.seen` is what its heatmaps say.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from handmesh.config.model import ModelConfig
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.hand import BETA_COUNT, JOINT_NAMES, MANO_JOINT_NAMES, HandOutput
from handmesh.hand.layer import HandModel
from handmesh.model.backbone import IMAGE_MEAN, IMAGE_STD, build_backbone
from handmesh.model.rotation import matrix_from_6d
from handmesh.model.token_head import TokenHead

_ROTATIONS = len(MANO_JOINT_NAMES)
_PEAK_CELLS = 2  # of a heatmap, around its peak
_IDENTITY_6D = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_TOKEN_STAGE = 1  # of the backbone's maps: stride 8, where a finger is one or two cells wide


class HandMeshNet(nn.Module):
    """(B, H, W, 3) uint8 RGB crops -> HandOutput. Geometry is float32 whatever the autocast."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig, hand: HandModel) -> None:
        super().__init__()
        self.config = config
        self.reparameterized = False  # True in a copy made by `reparameterize`
        self.backbone = build_backbone(config.backbone, drop_path=config.drop_path)
        channels = self.backbone.channels
        self.camera_head = nn.Linear(channels, 3)
        self.pose_head = nn.Linear(channels, _ROTATIONS * 6)
        self.betas_head = nn.Linear(channels, BETA_COUNT)
        self.confidence_head = nn.Linear(channels, 1) if config.confidence_head else None
        self.handedness_head = nn.Linear(channels, 1) if config.handedness_head else None
        self.joint_confidence_head = nn.Linear(channels, len(JOINT_NAMES)) if config.joint_confidence_head else None
        answers = [head.out_features for head in (self.camera_head, self.pose_head, self.betas_head)]
        maps = (self.backbone.pyramid_channels[_TOKEN_STAGE], channels)
        self.token_head = TokenHead(maps, sum(answers)) if config.token_head else None
        self.keypoint_head = DenseHead(self.backbone.pyramid_channels) if config.keypoint_head else None
        self.hand = hand
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        self._start_at_the_mean()

    def _start_at_the_mean(self) -> None:
        """Before training every photo gets the flat hand at rest in the middle: rotations are valid from the start."""
        for head in (self.camera_head, self.pose_head, self.betas_head):
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.zeros_(head.bias)
        with torch.no_grad():
            self.camera_head.bias[0] = self.config.initial_scale
            self.pose_head.bias.copy_(torch.tensor(_IDENTITY_6D).repeat(_ROTATIONS))

    def forward(self, images: Tensor) -> HandOutput:
        return self.forward_with_maps(images)[0]

    def forward_with_maps(self, images: Tensor, dense: DenseHead | None = None) -> tuple[HandOutput, DenseMaps | None]:
        """The answer, and what the keypoint head, or without one `dense`, says of the same stage maps."""
        head = dense if self.keypoint_head is None else self.keypoint_head
        if head is None and self.token_head is None:
            return self._decode(self.backbone(self._normalise(images)), (), None), None
        features, pyramid = self.backbone.forward_all(self._normalise(images))
        maps: DenseMaps | None = None if head is None else head(pyramid)
        return self._decode(features, pyramid, None if self.keypoint_head is None else maps), maps

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2) / 255.0 - self.image_mean) / self.image_std

    def _decode(self, features: Tensor, pyramid: tuple[Tensor, ...], maps: DenseMaps | None) -> HandOutput:
        with torch.autocast(features.device.type, enabled=False):
            pooled = features.float().mean(dim=(2, 3))
            answers = self.camera_head(pooled), self.pose_head(pooled), self.betas_head(pooled)
            if self.token_head is not None:
                # Where to look is no part of what is learnt: the first answer learns by what is added to it.
                keypoints = self._keypoints(*(answer.detach() for answer in answers))
                corrections = self.token_head((pyramid[_TOKEN_STAGE].float(), features.float()), keypoints)
                parts = corrections.split([answer.shape[-1] for answer in answers], dim=-1)
                answers = tuple(answer + part for answer, part in zip(answers, parts, strict=True))
            camera, numbers, betas = answers
            pose = _rotations(numbers)
            vertices, joints = self.hand(pose, betas)
            confidence = _probabilities(self.confidence_head, pooled, 1)[:, 0]
            handedness = _probabilities(self.handedness_head, pooled, 1)[:, 0]
            joint_confidence = _probabilities(self.joint_confidence_head, pooled, len(JOINT_NAMES))
            seen = torch.zeros_like(joints) if maps is None else seen_keypoints(maps[0])
        return HandOutput(camera, pose, betas, vertices, joints, confidence, handedness, joint_confidence, seen)

    def _keypoints(self, camera: Tensor, numbers: Tensor, betas: Tensor) -> Tensor:
        """(B, 21, 2) in NDC: where these answers draw the joints."""
        _, joints = self.hand(_rotations(numbers), betas)
        keypoints: Tensor = WeakPerspectiveCamera.from_vector(camera).project(joints)
        return keypoints

    def reparameterize(self) -> HandMeshNet:
        """A copy with every train-time branch of the backbone folded away: same outputs, faster, not for training."""
        deployed = copy.deepcopy(self).eval()
        deployed.backbone = self.backbone.reparameterize()
        if deployed.keypoint_head is not None:
            deployed.keypoint_head.fold()
        deployed.reparameterized = True
        return deployed.requires_grad_(False)


def _rotations(numbers: Tensor) -> Tensor:
    """(B, 16 x 6) -> (B, 16, 3, 3)."""
    return matrix_from_6d(numbers.unflatten(-1, (_ROTATIONS, 6)))


def _probabilities(head: nn.Linear | None, pooled: Tensor, count: int) -> Tensor:
    """(B, count) from a head of so many logits; ones where there is no such head."""
    if head is None:
        return torch.ones_like(pooled[:, :count])
    logits: Tensor = head(pooled)
    return logits.sigmoid()


Network = TypeVar("Network", bound=nn.Module)


def to_device(network: Network, device: torch.device) -> Network:
    """Moved to the device, kernels in the memory order (channels last) that convolutions are fastest in."""
    moved: Network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


DenseMaps = tuple[Tensor, Tensor]  # logits and depths, see `DenseHead`


class DenseHead(nn.Module):
    """Stage maps -> one heatmap and one depth map per joint at stride 8.

    A light feature pyramid (Lin et al. 2017): 1x1 laterals of strides 8, 16 and 32, summed upwards, one 3x3.
    """

    def __init__(self, pyramid_channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in pyramid_channels[1:])
        self.smooth = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.predict = nn.Conv2d(width, 2 * len(JOINT_NAMES), 1)

    def forward(self, pyramid: tuple[Tensor, ...]) -> DenseMaps:
        """-> logits (B, 21, h, w), depths (B, 21, h, w) in decimetres relative to the wrist; float32."""
        maps = [lateral(stage) for lateral, stage in zip(self.laterals, pyramid[1:], strict=True)]
        merged = maps.pop()
        while maps:
            finer = maps.pop()
            merged = finer + nn.functional.interpolate(merged, size=finer.shape[-2:], mode="nearest")
        logits, depths = self.predict(self.smooth(merged)).float().chunk(2, dim=1)
        return logits, depths

    def fold(self) -> None:
        """The batch norm, folded into the convolution before it: same outputs in evaluation mode."""
        convolution, norm = self.smooth[1], self.smooth[2]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            self.smooth[1], self.smooth[2] = fuse_conv_bn_eval(convolution.eval(), norm.eval()), nn.Identity()


def seen_keypoints(logits: Tensor) -> Tensor:
    """Heatmaps (B, 21, h, w) -> (B, 21, 3): the middle of the mass around each peak, NDC, and how much it is.

    Around: at most two cells away. A joint that may be in two places has a peak of half the mass, and not a place
    between them.
    """
    height, width = logits.shape[-2:]
    flat = logits.float().flatten(2).softmax(dim=-1)
    peak = flat.argmax(dim=-1, keepdim=True)
    places = torch.arange(height * width, device=logits.device)
    rows, columns = places // width, places % width
    near = ((rows - peak // width).abs() <= _PEAK_CELLS) & ((columns - peak % width).abs() <= _PEAK_CELLS)
    mass = flat * near
    total = mass.sum(dim=-1)
    x = (mass * ((columns + 0.5) * (2 / width) - 1)).sum(dim=-1) / total
    y = (mass * ((rows + 0.5) * (2 / height) - 1)).sum(dim=-1) / total
    return torch.stack((x, y, total), dim=-1)
