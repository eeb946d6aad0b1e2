"""A photo in; a mesh and a picture of each hand out.

    python examples/photo_to_mesh.py photo.jpg

They land in the folder where you are.
"""

import sys

import handmesh

photo = sys.argv[1]
hands = handmesh.load_predictor()(photo)
for number, hand in enumerate(hands):
    hand.save(f"hand_{number}.glb")  # also .obj .ply .stl .npz .json .html
    hand.save(f"hand_{number}.png", image=photo)
    print(f"hand_{number}:", hand)
if not hands:
    print("No hand found. Where you know that there is one, give a box: predictor(photo, boxes=[(x0, y0, x1, y1)])")
