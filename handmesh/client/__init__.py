"""A running service from Python: photos, batches, clips as jobs, and a live stream of frames.

    from handmesh.client import Client

    with Client("http://127.0.0.1:8000", token=None) as client:
        answer = client.hands("photo.jpg", hand="right")             # schemas.HandsAnswer
        answer.hands[0].array("vertices")                            # (778, 3) float32, metres
        for line in client.batch(["a.jpg", "b.jpg"]):                # schemas.BatchLine, as they are done
            print(line.name, line.status)
        job = client.wait(client.post_video("clip.mp4"))             # schemas.Job
        client.download(job, "results")
        with client.stream() as stream:
            seen = stream(frame)                                     # live.StreamAnswer

Answers are the service's own schemas (handmesh_server.schemas). Where the service asks to come back later it is asked
again; every other refusal is a ServiceError.
"""

from handmesh.client.http import ServiceError
from handmesh.client.live import LiveStream, StreamAnswer
from handmesh.client.service import Client

__all__ = ["Client", "LiveStream", "ServiceError", "StreamAnswer"]
