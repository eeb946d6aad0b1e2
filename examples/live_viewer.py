"""A live hand in 3D, in the browser:  pip install viser, best in an environment of its own, then

    python examples/live_viewer.py              the webcam; open http://localhost:8080
    python examples/live_viewer.py clip.mp4     a clip

viser serves the page from this machine; nothing leaves it.
"""

import sys

import viser

import handmesh


def main(source: str = "0", port: str = "8080") -> None:
    server = viser.ViserServer(host="127.0.0.1", port=int(port))
    server.scene.set_up_direction("-y")  # the camera frame: x right, y down, z forward, metres
    server.initial_camera.position = (0.0, 0.0, -0.1)
    server.initial_camera.look_at = (0.0, 0.0, 0.5)
    shown: dict[int, viser.SceneNodeHandle] = {}
    for _, hands in handmesh.follow_video(source, handmesh.load_predictor(threads=1)):
        for id in shown.keys() - hands.keys():
            shown.pop(id).remove()
        for id, hand in hands.items():
            shown[id] = server.scene.add_mesh_simple(
                f"/hand_{id}", hand.vertices_cam(), hand.faces, color=(224, 172, 140)
            )
    print(f"{len(shown)} hands in the last frame")


if __name__ == "__main__":
    main(*sys.argv[1:])
