"""Synthetic photographs of hands, with exact labels: rendered on a CPU core, without OpenGL, torch or licensed data.

    renderer = SceneRenderer(builtin_hand(), size=224)
    sample = renderer.render(np.random.default_rng(1))      # .image, .keypoints, .joints, .pose, ...

`render_pack` makes a set to train from, `write_dataset` one of files. See docs/explain/synth.md.
"""

from handmesh.config.scenes import CameraEffects, PoseSettings, SceneSettings
from handmesh.synth.backgrounds import Backgrounds
from handmesh.synth.camera_effects import (
    camera_effects,
    composite,
    jitter_spectrum,
    mix_amplitude,
    place_on_background,
)
from handmesh.synth.dataset import (
    Pack,
    PackedSample,
    render_pack,
    sample_generator,
    write_dataset,
)
from handmesh.synth.pose_prior import PosePrior
from handmesh.synth.scene import SceneRenderer, Shot, SyntheticSample, view_rotation

__all__ = [
    "Backgrounds",
    "CameraEffects",
    "Pack",
    "PackedSample",
    "PosePrior",
    "PoseSettings",
    "SceneRenderer",
    "SceneSettings",
    "Shot",
    "SyntheticSample",
    "camera_effects",
    "composite",
    "jitter_spectrum",
    "mix_amplitude",
    "place_on_background",
    "render_pack",
    "sample_generator",
    "view_rotation",
    "write_dataset",
]
