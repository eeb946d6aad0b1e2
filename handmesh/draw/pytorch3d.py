"""`render.render_mesh` by PyTorch3D instead: a second opinion on what is drawn, for machines that have it.

Same arguments, same answer within the antialiasing of edges. PyTorch3D decides which face each sample sees; colours are
then interpolated per sample and lit by the same lights as in `render`, at full rate instead of once per pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.draw.render import HAND_COLORS, ImageMesh, drawable_scene, shade_surface
from handmesh.errors import ConfigError
from handmesh.hand import Handedness


def render_mesh(
    vertices_image: NDArray[np.floating[Any]],
    faces: NDArray[np.integer[Any]],
    size: tuple[int, int],
    *,
    normals: NDArray[np.floating[Any]] | None = None,
    color: ArrayLike = HAND_COLORS[Handedness.RIGHT],
    device: str = "cpu",
) -> NDArray[np.uint8]:
    """Draw one mesh alone, `size` = (width, height) pixels -> (height, width, 4) RGBA uint8. See `render.render_mesh`.

    Faces turned away are left out, also where an opening of the mesh would show them. Raises ConfigError when PyTorch3D
    is not installed.
    """
    try:
        from pytorch3d.renderer.mesh import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise ConfigError(
            f"The PyTorch3D renderer was asked for, but it cannot be imported ({error}). PyPI has no wheel of it: "
            "build it as https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md says, "
            "or use the default renderer."
        ) from None

    width, height = size
    rgba = np.zeros((2 * height, 2 * width, 4), np.float32)
    scene = drawable_scene([ImageMesh(vertices_image, faces, normals, color)])
    corners = scene.points[scene.faces]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    front = scene.faces[one[:, 0] * two[:, 1] - two[:, 0] * one[:, 1] < 0]
    if len(front):
        import torch

        # PyTorch3D's picture plane: x to the left, y up, the shorter side from -1 to 1 edge to edge; depth is positive.
        place = np.empty_like(scene.points)
        shorter = min(width, height)
        place[:, 0] = (width - 2 * (scene.points[:, 0] + 0.5)) / shorter
        place[:, 1] = (height - 2 * (scene.points[:, 1] + 0.5)) / shorter
        place[:, 2] = scene.points[:, 2] - scene.points[:, 2].min() + 1
        mesh = Meshes(
            verts=[torch.from_numpy(place).to(device)], faces=[torch.from_numpy(front.astype(np.int64)).to(device)]
        )
        face_of, _, weights, _ = rasterize_meshes(
            mesh, image_size=(2 * height, 2 * width), blur_radius=0.0, faces_per_pixel=1, perspective_correct=False
        )
        seen = face_of[0, :, :, 0].cpu().numpy()
        covered = seen >= 0
        values = np.einsum(
            "nc,nck->nk", weights[0, :, :, 0].cpu().numpy()[covered], scene.attributes[front[seen[covered]]]
        ).astype(np.float32)
        for value in values:
            shade_surface(value, True, value[:3])
        rgba[covered] = np.concatenate([values[:, :3], np.full((len(values), 1), 255, np.float32)], axis=-1)

    samples = rgba.reshape(height, 2, width, 2, 4).transpose(0, 2, 1, 3, 4).reshape(height, width, 4, 4)
    alpha = samples[..., 3].mean(axis=-1)
    rgb = samples[..., :3].sum(axis=2) / np.maximum((samples[..., 3:] > 0).sum(axis=2), 1)
    return np.concatenate([rgb, alpha[..., None]], axis=-1).round().astype(np.uint8)
