"""/v1/videos: a clip is posted and accepted; later there are progress, results, and an end."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect

from handmesh.system.paths import user_cache_folder
from handmesh_server.errors import ClientGone, ClipFormatInvalid, NotDone, NotFound
from handmesh_server.jobs.limits import suffix_of
from handmesh_server.jobs.queue import open_queue
from handmesh_server.jobs.runner import JobRunner
from handmesh_server.jobs.store import RESULTS, IncomingJob, JobState, JobStore
from handmesh_server.schemas import Job, JobFile, JobProblem, VideoQuery
from handmesh_server.service import HandService
from handmesh_server.settings import Settings
from handmesh_server.spool import spool_body

_MEDIA_TYPES: Final = {
    ".mp4": "video/mp4",
    ".jsonl": "application/x-ndjson",
    ".glb": "model/gltf-binary",
    ".bvh": "text/plain; charset=utf-8",
}


class Jobs:
    """The jobs of one service: where they are, and who works on them."""

    def __init__(self, service: HandService) -> None:
        settings = service.settings
        folder = settings.jobs_dir or user_cache_folder() / "jobs"
        self.store = JobStore(
            folder,
            max_bytes=settings.jobs_bytes,
            max_jobs=settings.max_jobs,
            keep_seconds=settings.job_keep_seconds,
        )
        redis = None if settings.jobs_redis is None else settings.jobs_redis.get_secret_value()
        self.runner = JobRunner(
            self.store,
            partial(open_queue, folder, redis),
            workers=settings.job_workers,
            seconds=settings.job_seconds,
            incoming_seconds=settings.upload_seconds + 60,
            arguments=_arguments(settings),
            on_end=lambda status: service.metrics.jobs_ended.labels(status).inc(),
        )
        metrics = service.metrics
        for status in ("queued", "running"):
            metrics.watch(metrics.jobs.labels(status), partial(self._count, status))
        metrics.watch(metrics.jobs_bytes, self.store.used)

    def start(self) -> None:
        """Go on with what an earlier service left, where there may be something."""
        if self.store.folder.is_dir():
            self.runner.start()

    async def close(self) -> None:
        await asyncio.to_thread(self.runner.stop)

    def _count(self, status: str) -> float:
        return sum(state.status == status for state in self.store.unfinished())


def _arguments(settings: Settings) -> dict[str, Any]:
    """What every clip's process is told."""
    return {
        "model": settings.model,
        "passes": settings.passes,
        "max_frames": settings.max_clip_frames,
        "max_pixels": settings.max_clip_pixels,
        "memory_bytes": settings.job_memory_bytes,
        "nice": settings.job_nice,
        "log_level": settings.log_level,
    }


def video_routes(service: HandService, jobs: Jobs, problems: Any) -> APIRouter:
    """`problems(status, ...)`: these problems as OpenAPI names them."""
    router = APIRouter(tags=["videos"])
    settings, store = service.settings, jobs.store
    binary = {"schema": {"type": "string", "format": "binary"}}

    @router.post(
        "/v1/videos",
        operation_id="post_video",
        summary="A clip in; a job that makes an overlay, a log of hands and an animated hand of it",
        status_code=202,
        response_model=None,
        responses={
            202: {"model": Job, "description": "Accepted: Location says where to ask for it."},
            **problems(408, 413, 415, 422, 429, 503, 507),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": f"An MP4, MOV, WebM, MKV or AVI clip of at most {settings.max_upload_bytes:,} bytes and "
                f"{settings.max_clip_frames:,} pictures, as it is.",
                "content": {"video/mp4": binary, "video/webm": binary, "application/octet-stream": binary},
            }
        },
    )
    async def post_video(request: Request, query: Annotated[VideoQuery, Query()]) -> Response:
        query.check()
        service.check_open(0)
        incoming = await asyncio.to_thread(store.incoming)
        try:
            try:
                await spool_body(
                    request.stream(),
                    request.headers,
                    incoming.clip,
                    limit=settings.max_upload_bytes,
                    seconds=settings.upload_seconds,
                    check_room=store.check_room,
                )
            except ClientDisconnect:
                raise ClientGone("The client went away during the upload.") from None
            state = await asyncio.to_thread(_accept, incoming, query)
        finally:
            await asyncio.to_thread(incoming.discard)
        await asyncio.to_thread(jobs.runner.submit, state.id)
        return _answer(state, store, settings, 202)

    @router.get(
        "/v1/videos/{id}",
        operation_id="get_video",
        summary="How far a job is, and what came of it",
        response_model=None,
        responses={200: {"model": Job, "description": "Retry-After while there is more to come."}, **problems(404)},
    )
    async def get_video(id: str) -> Response:
        return _answer(await asyncio.to_thread(_known, store, id), store, settings, 200)

    @router.delete(
        "/v1/videos/{id}",
        operation_id="delete_video",
        summary="Cancel a job, or delete what came of it",
        status_code=204,
        response_model=None,
        responses={204: {"description": "It is gone."}, **problems(404)},
    )
    async def delete_video(id: str) -> Response:
        if not await asyncio.to_thread(store.cancel, id):
            raise _no_such_job()
        return Response(status_code=204)

    @router.get(
        "/v1/videos/{id}/{name}",
        operation_id="get_video_file",
        summary="A result of a job",
        response_class=FileResponse,
        response_model=None,
        responses={
            200: {"description": "The file.", "content": dict.fromkeys(_MEDIA_TYPES.values(), binary)},
            206: {"description": "The part that Range asked for."},
            **problems(404, 409),
        },
    )
    async def get_video_file(id: str, name: str) -> Response:
        state = await asyncio.to_thread(_known, store, id)
        if state.status in ("queued", "running"):
            raise NotDone("The job is not done yet.")
        if name not in ((state.ended or {}).get("result") or {}).get("files", ()):
            raise NotFound("The job has no such result.")
        path = store.path(id) / RESULTS / name
        if not path.is_file():
            raise _no_such_job()
        return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix])

    return router


def _accept(incoming: IncomingJob, query: VideoQuery) -> JobState:
    """Raises ClipFormatInvalid."""
    incoming.clip.seek(0)
    suffix = suffix_of(incoming.clip.read(16))
    if suffix is None:
        raise ClipFormatInvalid(
            "This is no MP4, MOV, WebM, MKV or AVI clip. Send its bytes as they are, no form: "
            "curl --data-binary @clip.mp4 URL"
        )
    return incoming.accept(suffix, {"query": query.model_dump()})


def _known(store: JobStore, id: str) -> JobState:
    state = store.state(id)
    if state is None:
        raise _no_such_job()
    return state


def _no_such_job() -> NotFound:
    return NotFound("There is no such job: it was never there, was deleted, or has expired.")


def _answer(state: JobState, store: JobStore, settings: Settings, status: int) -> Response:
    job = _job(state, store, settings)
    headers = {} if job.status in ("done", "failed") else {"Retry-After": "1"}
    if status == 202:
        headers["Location"] = f"/v1/videos/{state.id}"
    return JSONResponse(job.model_dump(), status, headers=headers)


def _job(state: JobState, store: JobStore, settings: Settings) -> Job:
    ended = state.ended or {}
    result = ended.get("result") or {}
    files = []
    for name in result.get("files", ()):
        path: Path = store.path(state.id) / RESULTS / name
        if path.is_file():
            url = f"/v1/videos/{state.id}/{name}"
            files.append(JobFile(name=name, media_type=_MEDIA_TYPES[path.suffix], bytes=path.stat().st_size, url=url))
    return Job(
        format="handmesh.job",
        version=1,
        id=state.id,
        status=state.status,  # type: ignore[arg-type]
        created=state.created,
        expires=ended["ended"] + settings.job_keep_seconds if ended else None,
        frames_done=result.get("frames", state.progress.get("frames_done", 0)),
        frames=result.get("frames", state.progress.get("frames")),
        frames_with_hands=result.get("frames_with_hands"),
        hands=result.get("hands"),
        remarks=result.get("remarks", []),
        files=files,
        problem=JobProblem(**ended["problem"]) if "problem" in ended else None,
    )
