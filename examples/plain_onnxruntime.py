"""The model without handmesh: one file, onnxruntime, NumPy and Pillow.

    handmesh export --format onnx
    python examples/plain_onnxruntime.py handmesh_t8.onnx photo.jpg 120 80 360 330     x0 y0 x1 y1: around the hand

Inputs and outputs: docs/reference/exported_models.md.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

model, photo, *box = sys.argv[1:]
x0, y0, x1, y1 = map(float, box)
side = round(1.5 * max(x1 - x0, y1 - y0))  # px, of a square 1.5 times the hand
left, top = round((x0 + x1 + 1 - side) / 2), round((y0 + y1 + 1 - side) / 2)
center = np.array([left, top]) + (side - 1) / 2  # pixels' centres are whole numbers
session = onnxruntime.InferenceSession(model)
size = session.get_inputs()[0].shape[1]  # px
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright, as the box is meant
crop = image.crop((left, top, left + side, top + side))  # black outside the photo
crop = crop.resize((size, size), Image.Resampling.BILINEAR)  # means, where it shrinks
names = [output.name for output in session.get_outputs()]
answer = dict(zip(names, session.run(None, {"crops": np.asarray(crop)[None]}), strict=True))
scale, *shift = answer["camera"][0]  # NDC per metre, metres: of a right hand. A left one: mirror the crop, then x -> -x
ndc = scale * (answer["joints"][0, :, :2] + shift)  # -1 to 1 over the crop
keypoints = center + side / 2 * ndc  # (21, 2) px
draw = ImageDraw.Draw(image)
for x, y in keypoints:
    draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="red")
image.save("keypoints.png")
print(f"a right hand: {answer['handedness'][0]:.2f}, found: {answer['confidence'][0]:.2f}; keypoints.png")
