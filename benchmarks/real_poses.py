"""Make the poses and views that `synth` draws from labels of photographs:

    python benchmarks/real_poses.py labels.jsonl [more.jsonl] --out poses.npz --source "whose; licence" [--source ...]

Labels with poses are what `handmesh label` writes. Only numbers are kept: rotations, and which way the palm faced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from handmesh.data.formats.jsonl import JsonlData
from handmesh.synth.real_poses import real_pose_arrays, thinned
from handmesh.system.atomic import written_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="+", help="JSONL files; lines without a pose are passed over")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2500, help="at most so many, none much like another")
    parser.add_argument("--source", action="append", default=[], help="origin and licence, written into the file")
    arguments = parser.parse_args()
    records = []
    for data in map(JsonlData, arguments.labels):
        for labels in map(data.labels, range(len(data))):
            if labels.hand.pose_known:
                records.append((labels.hand.pose, labels.handedness))
    arrays = thinned(real_pose_arrays(records, sources=arguments.source), arguments.count)
    with written_atomically(arguments.out) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            fingers=arrays.fingers.astype(np.float16),
            views=arrays.views.astype(np.float16),
            sources=np.array(arrays.sources),
        )
    print(
        f"{len(arrays.fingers)} of {len(records)} poses -> {arguments.out}, {arguments.out.stat().st_size / 1e3:.0f} kB"
    )


if __name__ == "__main__":
    main()
