"""Is our hand layer the same function as smplx's own, on the user's MANO file? An independent check, when it is there.

smplx (extra `mano`) is under the Max Planck Institute's non-commercial licence; handmesh contains none of it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import fields

import torch

from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandArrays
from handmesh.hand.layer import HandModel


def difference_from_smplx(arrays: HandArrays, count: int = 64, seed: int = 0) -> float | None:
    """Largest distance in metres between the vertices of the two layers over random hands; None without smplx.

    Computed in float64, with our arrays rounded to float32 (a tenth of a micrometre): more is another function.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # smplx's own
        try:
            import smplx
            from smplx.utils import Struct
        except ImportError:
            return None
        struct = Struct(**{field.name: getattr(arrays, field.name) for field in fields(arrays)})
        struct.kintree_table = struct.kintree_table.copy()  # smplx writes into it
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how many betas it found
            # is_rhand only changes what it prints: the arrays decide which hand it is.
            theirs = smplx.MANOLayer(
                model_path="",
                data_struct=struct,
                is_rhand=True,
                dtype=torch.float64,
                num_betas=10,
                use_compressed=False,
            )
    generator = torch.Generator().manual_seed(seed)
    rotations = matrix_from_vector(0.5 * torch.randn(count, 16, 3, generator=generator, dtype=torch.float64))
    betas = torch.randn(count, 10, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(betas=betas, global_orient=rotations[:, :1], hand_pose=rotations[:, 1:]).vertices
        vertices, _ = HandModel(arrays).double()(rotations, betas)
    return float((vertices - expected).norm(dim=-1).max())
