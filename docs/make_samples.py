"""Draw the sample images that ship with the package:  python docs/make_samples.py

They are synthetic, so anybody may use them for anything. Chosen by eye among the first sixty of their
seed, and not as a test: a claw-like hand on which the bundled model fails (number 53) was exchanged for number 41.
"""

from __future__ import annotations

from pathlib import Path

from handmesh.files.image import encode_image
from handmesh.hand import builtin_hand
from handmesh.synth import SceneRenderer, SceneSettings, sample_generator
from handmesh.system.atomic import write_atomically

SEED = 2026
SAMPLES = {"palm": 7, "point": 22, "horns": 28, "spread": 35, "rest": 41, "left_gun": 43}  # name -> number in the seed


def main() -> None:
    folder = Path(__file__).parent.parent / "handmesh" / "assets" / "samples"
    renderer = SceneRenderer(builtin_hand(), SceneSettings(crop_share=(0.55, 0.75)), size=384)
    for name, index in SAMPLES.items():
        image = renderer.render(sample_generator(SEED, index)).image
        if name.startswith("left"):
            image = image[:, ::-1].copy()
        write_atomically(folder / f"{name}.jpg", encode_image(image, "jpg", quality=88))


if __name__ == "__main__":
    main()
