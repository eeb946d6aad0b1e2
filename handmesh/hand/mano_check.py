"""Is our hand the same function as smplx's own, on the user's MANO file? An independent check, when it is there.

smplx (extra `mano`) is under the Max Planck Institute's non-commercial licence; handmesh contains none of it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import fields

import numpy as np

from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import BETA_COUNT, MANO_JOINT_COUNT, HandArrays


def difference_from_smplx(arrays: HandArrays, count: int = 64, seed: int = 0) -> float | None:
    """Largest distance in metres between the vertices of the two over random hands, in float64; None without smplx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # smplx's own
        try:
            import smplx
            import torch
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
                num_betas=BETA_COUNT,
                use_compressed=False,
            )
    rng = np.random.default_rng(seed)
    rotations = matrix_from_vector(0.5 * rng.normal(size=(count, MANO_JOINT_COUNT, 3)))
    betas = rng.normal(size=(count, BETA_COUNT))
    with torch.no_grad():
        pose = torch.from_numpy(rotations)
        expected = theirs(betas=torch.from_numpy(betas), global_orient=pose[:, :1], hand_pose=pose[:, 1:]).vertices
    found = arrays.shaped(betas).posed(rotations).vertices
    return float(np.linalg.norm(found - expected.numpy(), axis=-1).max())
