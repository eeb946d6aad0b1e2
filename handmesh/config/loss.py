"""Settings of what a hand mesh model is trained to match: the weights of the parts, and how they are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from handmesh.config.settings import Settings

Weight = Annotated[float, Field(ge=0)]  # 0: that part is left out


class LossWeights(Settings):
    """Weights of the parts of `losses.hand_loss`; lengths in metres, 2D in NDC, rotations as matrices.

    The balance is measured: an L1 on posed vertices alone averages over the unknown orientation and collapses, so the
    hand's own (de-rotated) frame and the rotations carry the gradient and the posed frame is a small share.
    """

    vertices: Weight = 2.0  # L1, relative to the wrist
    joints: Weight = 2.0  # as vertices
    root_vertices: Weight = 10.0  # the same in the hand's own frame, orientation taken out
    root_joints: Weight = 10.0  # as root_vertices
    keypoints: Weight = 1.0  # L1 of the projected joints, NDC of the crop
    orientation: Weight = 1.0  # L1 of the matrix of the whole hand
    pose: Weight = 2.0  # L1 of the 15 matrices of the fingers
    betas: Weight = 0.02  # L1; small, for a photograph says little about them
    heatmaps: Weight = 0.25  # dense supervision, in training only
    heatmap_keypoints: Weight = 1.0  # L1 of the heatmaps' centres, NDC
    heatmap_depths: Weight = 0.3  # decimetres, relative to the wrist
    # Of the mesh's triangles: how far edges are from lying in the true triangle's plane (cosine with its normal), and
    # how much longer or shorter than the true ones they are, metres. Meshes whose vertices are predicted one by one
    # need them to be smooth (I2L-MeshNet, whose definitions these are; MobRecon, in metres: 0.02 and 1 times the weight
    # of the vertices). One that a hand model poses is smooth without, so they are off: to be tried where fingers come
    # out too thick, or turned about their own axes.
    normals: Weight = 0.0
    edges: Weight = 0.0  # as normals
    confidence: Weight = 0.1  # cross-entropies of the optional heads
    handedness: Weight = 0.2  # cross-entropy, as confidence
    joint_confidence: Weight = 0.1  # cross-entropy, as confidence


class LossNorms(Settings):
    """How the three kinds of positions are compared. METRO: vertices by L1, joints and keypoints by squares.

    Squares of metres are small: so joints carry 1 to 2 % of the gradient on the pose (benchmarks/gradients.py).
    """

    vertices: Literal["l1", "mse"] = "l1"  # posed and root-relative ones
    joints: Literal["l1", "mse"] = "l1"  # as vertices
    keypoints: Literal["l1", "mse"] = "l1"  # drawn ones
