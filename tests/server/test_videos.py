"""Clips over HTTP: posted, worked on by the true process, fetched, cancelled, and refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from handmesh_server.jobs.limits import suffix_of
from handmesh_server.schemas import Job
from server_harness import photo, running, settings, talk_to, wait_until

from handmesh.files.image import read_image
from handmesh.motion.log import read_frames
from handmesh.predict import load_predictor

FRAMES = 6


def clip_of(images: list[np.ndarray], path: Path, fourcc: str = "MJPG") -> bytes:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 25.0, (width, height))
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path.read_bytes()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    """A sample hand that moves to the right."""
    import handmesh

    image = read_image(Path(handmesh.__file__).parent / "assets" / "samples" / "palm.jpg")
    image = cv2.resize(image, (160, round(160 * image.shape[0] / image.shape[1]) // 2 * 2))
    return clip_of(moved(image), tmp_path_factory.mktemp("clip") / "clip.avi")


@pytest.fixture(scope="module")
def two_hands(tmp_path_factory) -> bytes:
    """A right hand beside a left one, which move alike."""
    import handmesh

    image = cv2.resize(read_image(Path(handmesh.__file__).parent / "assets" / "samples" / "palm.jpg"), (240, 240))
    return clip_of(moved(np.hstack([image, image[:, ::-1]])), tmp_path_factory.mktemp("clip") / "two.avi")


def moved(image: np.ndarray) -> list[np.ndarray]:
    return [cv2.warpAffine(image, np.float32([[1, 0, 2 * index], [0, 1, 0]]), None) for index in range(FRAMES)]


@pytest.fixture
def jobs_in(tmp_path):
    """make(...) -> settings of a service with the bundled model, whose jobs are of this test alone."""
    return lambda **changes: settings(jobs_dir=tmp_path / "jobs", job_nice=0, **changes)


def finished(client, id: str) -> Job:
    end = time.monotonic() + 600
    while True:
        answer = client.get(f"/v1/videos/{id}")
        job = Job.model_validate_json(answer.content)
        if job.status in ("done", "failed"):
            assert "retry-after" not in answer.headers
            return job
        assert answer.headers["retry-after"] == "1"
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_clip_becomes_overlay_log_and_animation(jobs_in, clip, tmp_path):
    """Also over restarts of the service: what is there is there afterwards, and what is deleted is gone."""
    with running(jobs_in(job_workers=0)) as server:
        client = server.client
        accepted = client.post("/v1/videos?bvh=true&fov=60", content=clip)
        assert accepted.status_code == 202, accepted.text
        job = Job.model_validate_json(accepted.content)
        assert accepted.headers["location"] == f"/v1/videos/{job.id}"
        assert (job.status, job.frames_done, job.files) == ("queued", 0, [])
        early = client.get(f"/v1/videos/{job.id}/overlay.mp4")
        assert (early.status_code, early.json()["reason"]) == (409, "not_done")

    with running(jobs_in()) as server:
        client = server.client
        done = finished(client, job.id)
        assert done.status == "done", done.problem
        assert (done.frames_done, done.frames, done.frames_with_hands, done.hands) == (FRAMES, FRAMES, FRAMES, 1)
        wait_until(lambda: 'handmesh_jobs_ended_total{status="done"} 1.0' in client.get("/metrics").text)

    with running(jobs_in()) as server:
        client = server.client
        again = Job.model_validate_json(client.get(f"/v1/videos/{job.id}").content)
        assert again == done
        files = {file.name: client.get(file.url) for file in again.files}
        assert {"overlay.mp4", "hands.jsonl", "hand.glb"} < set(files)
        assert any(name.endswith(".bvh") for name in files)
        for file in again.files:
            assert files[file.name].headers["content-type"] == file.media_type
            assert len(files[file.name].content) == file.bytes
        assert files["hand.glb"].content.startswith(b"glTF")
        (tmp_path / "hands.jsonl").write_bytes(files["hands.jsonl"].content)
        frames = list(read_frames(tmp_path / "hands.jsonl"))
        assert [len(frame["hands"]) for frame in frames] == [1] * FRAMES
        wrists = [frame["hands"][0]["keypoints_px"][0][0] for frame in frames]
        assert wrists[-1] - wrists[0] == pytest.approx(2 * (FRAMES - 1), abs=4)
        part = client.get(f"/v1/videos/{job.id}/overlay.mp4", headers={"Range": "bytes=0-9"})
        assert (part.status_code, len(part.content)) == (206, 10)
        for path in ("job.json", "clip.avi", "..%2Fjob.json", "results"):
            assert client.get(f"/v1/videos/{job.id}/{path}").status_code == 404
        assert client.delete(f"/v1/videos/{job.id}").status_code == 204
        assert client.delete(f"/v1/videos/{job.id}").status_code == 404
        assert client.get(f"/v1/videos/{job.id}").status_code == 404
        assert not (tmp_path / "jobs" / job.id).exists()


def test_a_clip_that_another_version_began_is_begun_anew(jobs_in, clip, tmp_path):
    """After an upgrade, or on a machine with another engine, it failed: as a clip that could not be read."""
    with running(jobs_in(job_workers=0)) as server:
        id = server.client.post("/v1/videos", content=clip).json()["id"]
    results = tmp_path / "jobs" / id / "results"
    results.mkdir()
    header = {"format": "handmesh.video", "version": 1, "generator": "handmesh 0.0.1"}
    lines = [header, {"frame": 0, "time": 0.0, "hands": []}]
    (results / "hands.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with running(jobs_in()) as server:
        job = finished(server.client, id)
    assert (job.status, job.frames, job.frames_with_hands) == ("done", FRAMES, FRAMES), job.problem


def test_the_hands_are_those_that_the_command_line_finds(jobs_in, two_hands, tmp_path):
    """Both of them, where a job once followed one alone; and a clip that ends midway is followed as far as it goes."""
    from handmesh.files.video import ClipSource
    from handmesh.motion.clip import VideoOptions, convert_clip

    half = two_hands[: 2 * len(two_hands) // 3]
    path = tmp_path / "clip.avi"
    path.write_bytes(half)
    here = convert_clip(
        ClipSource(path),
        tmp_path / "here",
        load_predictor(None, passes=2, threads=1),
        options=VideoOptions(),
    )
    assert 2 <= here.frames < FRAMES
    with running(jobs_in()) as server:
        job = finished(server.client, server.client.post("/v1/videos", content=half).json()["id"])
        assert (job.status, job.frames, job.hands) == ("done", here.frames, 2), job.problem
        log = server.client.get(f"/v1/videos/{job.id}/hands.jsonl").text
    expected = [json.loads(line) for line in (tmp_path / "here" / "hands.jsonl").read_text().splitlines()[1:]]
    assert [json.loads(line) for line in log.splitlines()[1:]] == expected


def test_what_cannot_be_followed_fails_with_a_reason(jobs_in, clip, tmp_path):
    with running(jobs_in(max_clip_frames=4, job_workers=2)) as server:
        posted = {
            "4 pictures|limit is 4": clip,
            "cannot be read as a video": b"\0\0\0\x20ftypisom" + bytes(2000),
        }
        for says, content in posted.items():
            job = finished(server.client, server.client.post("/v1/videos", content=content).json()["id"])
            assert job.status == "failed"
            assert job.problem.reason == "unreadable_clip"
            assert any(part in job.problem.detail for part in says.split("|")), job.problem
            assert str(tmp_path) not in job.problem.detail
            nothing = server.client.get(f"/v1/videos/{job.id}/overlay.mp4")
            assert nothing.status_code == 404


def test_what_is_posted_is_checked_at_once(jobs_in, clip, tmp_path):
    with running(jobs_in(max_upload_bytes=100_000, jobs_bytes=2**20, max_jobs=1, job_workers=0)) as server:
        client = server.client

        def refused(content: bytes, query: str = "", **headers: str) -> tuple[int, str]:
            answer = client.post(f"/v1/videos{query}", content=content, headers=headers)
            return answer.status_code, answer.json()["reason"]

        assert refused(b"") == (415, "unsupported_clip")
        assert refused(photo()) == (415, "unsupported_clip")
        assert refused(bytes(100_001)) == (413, "too_large")
        assert refused(clip[:90_000], "?focal=500&fov=60") == (422, "invalid_query")
        assert refused(clip[:90_000], "?smooth=0.01") == (422, "invalid_query")
        assert refused(clip[:90_000], "?max_hands=0") == (422, "invalid_query")
        assert list((tmp_path / "jobs").iterdir()) == []
        job = client.post("/v1/videos", content=clip[:90_000])
        assert job.status_code == 202
        assert refused(clip[:90_000]) == (429, "queue_full")
        assert client.delete(job.headers["location"]).status_code == 204
        (tmp_path / "jobs" / "large").write_bytes(bytes(2**20 - 1000))
        time.sleep(1.1)
        assert refused(clip[:90_000]) == (507, "storage_full")
        assert client.get("/v1/videos/nothing").status_code == 404
        not_so = client.put("/v1/videos/nothing")
        assert (not_so.status_code, not_so.headers["allow"]) == (405, "DELETE, GET")


def test_jobs_have_the_token_to_show(jobs_in, clip):
    with running(jobs_in(token="t" * 24, job_workers=0)) as server, talk_to(server.url) as client:
        assert client.post("/v1/videos", content=clip).status_code == 401
        posted = client.post("/v1/videos", content=clip, headers={"Authorization": f"Bearer {'t' * 24}"})
        assert posted.status_code == 202
        assert client.get(posted.headers["location"]).status_code == 401
        assert client.delete(posted.headers["location"]).status_code == 401


def test_no_clip_leaves_no_folder(jobs_in, tmp_path):
    with running(jobs_in()) as server:
        server.client.post("/v1/hands", content=photo())
        assert "handmesh_jobs_bytes 0.0" in server.client.get("/metrics").text
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\x00ftyp",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
        b"RIFF\0\0\0\0WAVE",
        b"",
    ],
)
def test_what_makes_ffmpeg_open_other_files_is_no_clip(content):
    assert suffix_of(content[:16]) is None
