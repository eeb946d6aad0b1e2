"""Meshes drawn by PyTorch3D instead of `render`: a second opinion, for machines that have it.

`overlay_meshes(image, meshes, draw_box=pytorch3d.draw_box)` is what `handmesh predict --renderer pytorch3d` does. The
same picture within the antialiasing of edges. PyTorch3D decides which face each sample sees; colours are then
interpolated per sample and lit by the same lights as in `render`, at full rate instead of once per pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handmesh.draw.render import Box, Scene, shade_surface
from handmesh.errors import ConfigError


def check_installed() -> None:
    """Raises ConfigError when PyTorch3D is not installed."""
    try:
        import pytorch3d.renderer.mesh  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"The PyTorch3D renderer was asked for, but it cannot be imported ({error}). PyPI has no wheel of it: "
            "build it as https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md says, "
            "or use the default renderer."
        ) from None


def draw_box(scene: Scene, box: Box) -> NDArray[np.uint8]:
    """Draw what of a scene lies in a box of pixels -> (y1 - y0, x1 - x0, 4) RGBA.

    Raises ConfigError when PyTorch3D is not installed.
    """
    check_installed()
    from pytorch3d.renderer.mesh import rasterize_meshes
    from pytorch3d.structures import Meshes

    width, height = box[2] - box[0], box[3] - box[1]
    points = scene.points - np.array([box[0], box[1], 0], np.float32)
    rgba = np.zeros((2 * height, 2 * width, 4), np.float32)
    corners = points[scene.faces]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    outside = one[:, 0] * two[:, 1] - two[:, 0] * one[:, 1] < 0  # y is down
    if len(scene.faces):
        import torch

        # PyTorch3D's picture plane: x to the left, y up, the shorter side from -1 to 1 edge to edge; depth is positive.
        place = np.empty_like(points)
        shorter = min(width, height)
        place[:, 0] = (width - 2 * (points[:, 0] + 0.5)) / shorter
        place[:, 1] = (height - 2 * (points[:, 1] + 0.5)) / shorter
        place[:, 2] = points[:, 2] - points[:, 2].min() + 1
        mesh = Meshes(verts=[torch.from_numpy(place)], faces=[torch.from_numpy(scene.faces.astype(np.int64))])
        face_of, _, weights, _ = rasterize_meshes(
            mesh, image_size=(2 * height, 2 * width), blur_radius=0.0, faces_per_pixel=1, perspective_correct=False
        )
        seen = face_of[0, :, :, 0].numpy()
        covered = seen >= 0
        values = np.einsum(
            "nc,nck->nk", weights[0, :, :, 0].numpy()[covered], scene.attributes[scene.faces[seen[covered]]]
        ).astype(np.float32)
        for value, face in zip(values, seen[covered], strict=True):
            shade_surface(value, outside[face], value[:3])
        rgba[covered] = np.concatenate([values[:, :3], np.full((len(values), 1), 255, np.float32)], axis=-1)

    samples = rgba.reshape(height, 2, width, 2, 4).transpose(0, 2, 1, 3, 4).reshape(height, width, 4, 4)
    alpha = samples[..., 3].mean(axis=-1)
    rgb = samples[..., :3].sum(axis=2) / np.maximum((samples[..., 3:] > 0).sum(axis=2), 1)
    return np.concatenate([rgb, alpha[..., None]], axis=-1).round().astype(np.uint8)
