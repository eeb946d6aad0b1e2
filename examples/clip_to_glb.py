"""A clip in; an animated hand for Blender, three.js and Unity out.

    python examples/clip_to_glb.py clip.mp4 animated/

The folder gets hand.glb and hands.jsonl, a line of JSON for each frame.
"""

import sys
from pathlib import Path

import handmesh

clip, folder = sys.argv[1:3]
result = handmesh.convert_clip(
    clip,  # a video file, or a folder of pictures
    Path(folder),
    handmesh.load_predictor(threads=1),
    options=handmesh.VideoOptions(overlay=False),  # True: a video with the mesh drawn, too
    progress=lambda done, total: print(f"\r{done} of {total or '?'} frames", end="", flush=True),
)
print(f"\na hand in {result.frames_with_hands} of {result.frames} frames:", *result.files, sep="\n")
