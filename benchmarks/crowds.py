"""Pictures of several rendered hands, all of them known, for `benchmarks/detection.py`:

    python benchmarks/crowds.py OUT [--sizes 0.045 0.055] [--glove 1]
    python benchmarks/detection.py OUT/scenes.jsonl --least 0

They say of small, gloved and crossing hands what photographs with a teacher's labels cannot, because the teacher misses
those. Of 400 px, with the default scenes' camera effects, from a seed that no training uses. A hand of which less than
--seen lies in the picture with nothing in front is neither listed nor background ("doubtful").
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from synthetic_photos import SPOILING

from handmesh.files.image import encode_image
from handmesh.synth import Backgrounds, CameraEffects, SceneSettings, camera_effects, render_pack
from handmesh.synth.crowd import draw_crowd

SEED = 9_100_027
SIDE = 400  # px, as the photographs of scenes.jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=200, help="pictures, each of one to three hands")
    parser.add_argument(
        "--sizes", type=float, nargs=2, default=(0.05, 0.8), help="a hand's longer side over the picture's, from and to"
    )
    parser.add_argument("--glove", type=float, default=SceneSettings().glove, help="share of gloved hands")
    parser.add_argument("--seen", type=float, default=0.6)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = SceneSettings(crop_share=(0.3, 0.85), second_hand=0.0, glove=arguments.glove)
    backgrounds, effects = Backgrounds(), CameraEffects(**dict.fromkeys(SPOILING, 0.0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pack = render_pack(Path(folder) / "pack", 2 * arguments.count, SEED, 192, settings, workers=2)
        for index in range(arguments.count):
            rng = np.random.default_rng((SEED, index))
            sizes = tuple(arguments.sizes)
            image, hands = draw_crowd(
                rng,
                backgrounds.sample(rng, SIDE),
                int(rng.integers(1, 4)),
                sizes,
                lambda r: pack[int(r.integers(len(pack)))],
            )
            image = camera_effects(rng, image, effects)
            (arguments.out / f"{index:04}.jpg").write_bytes(encode_image(image, ".jpg"))
            boxes = [(*hand.keypoints.min(axis=0), *hand.keypoints.max(axis=0)) for hand in hands]
            rows.append(
                {
                    "image": f"{index:04}.jpg",
                    "source": "renders",
                    "hands": [
                        {
                            "handedness": "right" if hand.right else "left",
                            "keypoints": np.round(hand.keypoints, 1).tolist(),
                        }
                        for hand in hands
                        if hand.seen >= arguments.seen
                    ],
                    "doubtful": [
                        [round(float(edge), 1) for edge in box]
                        for hand, box in zip(hands, boxes, strict=True)
                        if hand.seen < arguments.seen
                    ],
                }
            )
    (arguments.out / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
