"""A folder of photos in; a table of how far each joint bends, in degrees, out.

    python examples/folder_to_joint_angles.py photos/ angles.csv

A row for each hand; docs/how_to/folder.md shows one.
"""

import csv
import math
import sys
from pathlib import Path

import handmesh

folder, table = map(Path, sys.argv[1:3])
predictor = handmesh.load_predictor()
photos, _ = handmesh.photos_in(folder, recursive=True)
with table.open("w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    for photo in photos:
        try:
            hands = predictor(photo)
        except handmesh.HandMeshError as error:  # a damaged photo
            print(error, file=sys.stderr)
            continue
        for hand in hands:
            angles = hand.joint_angles()  # by joint: flexion, abduction, twist; radians from the flat hand
            if file.tell() == 0:
                rows.writerow(["photo", "hand", "score", *angles])
            flexions = [f"{math.degrees(angle.flexion):.1f}" for angle in angles.values()]
            rows.writerow([photo.relative_to(folder), hand.handedness, f"{hand.score:.2f}", *flexions])
print(table)
