"""Draw in the air: pinch thumb and index finger to draw, open them to stop. Press c to clear, q to quit.

    python examples/pinch_to_draw.py                          the webcam
    python examples/pinch_to_draw.py clip.mp4 drawing.png     a clip, and the drawing as a file

Distances, angles and ids: docs/how_to/pinch.md.
"""

import sys

import cv2
import numpy as np

import handmesh

CLOSED, OPEN = 0.030, 0.045  # metres between the tips: two limits, so that a stroke does not flicker


def main(source: str = "0", picture: str | None = None) -> None:
    pens: dict[int, tuple[int, int]] = {}  # of the hands that are drawing, by id: where they were
    canvas = None
    for frame, hands in handmesh.follow_video(source, handmesh.load_predictor(threads=1)):
        canvas = np.zeros_like(frame.image) if canvas is None else canvas
        pens = {id: pen for id, pen in pens.items() if id in hands}
        for id, hand in hands.items():
            if hand.distance("thumb_tip", "index_tip") > (OPEN if id in pens else CLOSED):
                pens.pop(id, None)
                continue
            tips = hand.keypoints_image()[[handmesh.JOINT_NAMES.index(name) for name in ("thumb_tip", "index_tip")]]
            x, y = tips.mean(axis=0).round().astype(int).tolist()
            cv2.line(canvas, pens.get(id, (x, y)), (x, y), (255, 200, 40), 5, cv2.LINE_AA)
            pens[id] = x, y
        shown = np.where(canvas.any(axis=2, keepdims=True), canvas, frame.image // 2)
        if picture is None:
            cv2.imshow("pinch to draw", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR)[:, ::-1])
            key = cv2.waitKey(1)
            if key == ord("q"):
                break
            if key == ord("c"):
                canvas[:] = 0
    if picture is not None:
        cv2.imwrite(picture, cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
