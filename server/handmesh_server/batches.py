"""POST /v1/batches: many photos in one request; a line of JSON for each as soon as it is done.

A batch takes its turns in the same queue as everybody, a few photos at a time, and waits where a single photo would be
refused because the queue is full. Photos fail alone.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import IO, Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json
from starlette.datastructures import State
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from handmesh.system.cpus import usable_cpus
from handmesh_server import answers
from handmesh_server.admission import RequestContext
from handmesh_server.errors import ClientGone, QueueFull, StorageFull
from handmesh_server.input import IMAGE_FIELD
from handmesh_server.photos import BatchPhoto, opened_batch
from handmesh_server.problems import ProblemDetails, problem_document, problem_of
from handmesh_server.schemas import BatchEnd, BatchQuery, HandsQuery
from handmesh_server.service import HandService, PhotoRequest
from handmesh_server.spool import spool_body

logger = logging.getLogger(__name__)

NDJSON: Final = "application/x-ndjson"

# How long a photo of a batch tries again where the queue is full, before it is answered as a single one would be.
_PATIENCE_SECONDS: Final = 120.0
_RETRY_SECONDS: Final = 0.2


def batch_routes(service: HandService, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """`responses`: the problems that OpenAPI names."""
    router = APIRouter()
    settings = service.settings
    places = asyncio.Semaphore(settings.max_batches)
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "properties": {IMAGE_FIELD: {"type": "array", "items": binary["schema"]}},
            "required": [IMAGE_FIELD],
            "additionalProperties": False,
        }
    }

    @router.post(
        "/v1/batches",
        tags=["hands"],
        operation_id="find_hands_of_many",
        summary="Many photos in, a line of JSON for each as it is done",
        response_class=StreamingResponse,
        response_model=None,
        responses={
            200: {
                "description": "A line for each photo (BatchLine), in the order in which they are done, and a last one "
                "(BatchEnd).",
                "content": {NDJSON: {"schema": {"type": "string"}}},
            },
            **responses,
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": f"A zip, or a form whose fields `{IMAGE_FIELD}` are photos: at most "
                f"{settings.max_batch_photos:,} photos and {settings.max_upload_bytes:,} bytes.",
                "content": {"application/zip": binary, "multipart/form-data": form},
            }
        },
    )
    async def batches(request: Request, query: Annotated[BatchQuery, Query()]) -> Response:
        query.check()
        service.check_open(0)
        held = ExitStack()
        if places.locked():
            raise QueueFull(f"{settings.max_batches} batches are in work, the limit. Try again soon.", 10)
        await places.acquire()
        held.callback(places.release)
        try:
            file = held.enter_context(_temporary_file())
            try:
                await spool_body(
                    request.stream(),
                    request.headers,
                    file,
                    limit=settings.max_upload_bytes,
                    seconds=settings.upload_seconds,
                )
            except ClientDisconnect:
                raise ClientGone("The client went away during the upload.") from None
            opened = opened_batch(
                file,
                request.headers.get("content-type", ""),
                max_photos=settings.max_batch_photos,
                max_photo_bytes=settings.max_body_bytes,
                max_bytes=settings.max_upload_bytes,
            )
            photos = await asyncio.to_thread(held.enter_context, opened)
        except BaseException:
            held.close()
            raise
        gzip = answers.takes_gzip(request.headers.get("accept-encoding"))
        lines = _lines(service, photos, query.of_a_photo(), request.state)
        return _BatchResponse(lines, gzip, held)

    return router


class _BatchResponse(StreamingResponse):
    """Lets go of everything however it ends."""

    def __init__(self, lines: AsyncGenerator[bytes, None], gzip: bool, held: ExitStack) -> None:
        headers = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if gzip else {})
        super().__init__(_compressed(lines) if gzip else lines, media_type=NDJSON, headers=headers)
        self._lines, self._held = lines, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with self._held:
                await self._lines.aclose()


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(prefix="handmesh-batch-")
    except OSError as error:
        raise StorageFull(f"The upload cannot be stored: {error.strerror or error}.") from error


async def _lines(
    service: HandService, photos: list[BatchPhoto], query: HandsQuery, state: State
) -> AsyncGenerator[bytes, None]:
    """One line of NDJSON for each photo, and the last. `state` of the request is told how many hands there are."""
    answered, state.hands = 0, 0
    batch = state.admission.context
    # One is decoded while another is in the model: more would take places of others and bring nothing.
    at_once = usable_cpus() + 1
    pending: set[asyncio.Task[tuple[int | None, bytes]]] = set()
    try:
        waiting = iter(enumerate(photos))
        while True:
            while len(pending) < at_once and (entry := next(waiting, None)) is not None:
                pending.add(asyncio.create_task(_line(service, *entry, query, batch)))
            if not pending:
                break
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                hands, line = task.result()
                answered += hands is not None
                state.hands += hands or 0
                yield line
        yield BatchEnd(end=True, photos=len(photos), answered=answered).model_dump_json().encode() + b"\n"
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _line(
    service: HandService, index: int, photo: BatchPhoto, query: HandsQuery, batch: RequestContext
) -> tuple[int | None, bytes]:
    """How many hands the photo has, None where it was not answered, and its line."""
    request_id = batch.request_id
    encode = partial(answers.encode_answer, media_type=answers.JSON, request_id=request_id)
    start = b'{"index":%d,"name":%s,' % (index, to_json(photo.name))
    try:
        encoded = await asyncio.to_thread(photo.read)
        answer = await _answer(service, encoded, query, encode, batch)
    except Exception as error:  # belongs to this photo alone
        problem = problem_of(error)
        if problem is None:
            logger.exception("failed: photo %d of a batch", index, extra={"request_id": request_id})
            problem = ProblemDetails(500, "error", "The server failed; its log has this request id.")
        service.metrics.rejected.labels(problem.reason).inc()
        return None, start + b'"status":%d,"problem":%s}\n' % (
            problem.status,
            to_json(problem_document(problem, request_id)),
        )
    return answer.hands, start + b'"status":200,"answer":%s}\n' % answer.content


async def _answer(
    service: HandService, encoded: bytes, query: HandsQuery, encode: Any, batch: RequestContext
) -> answers.Answer:
    """As a single photo is answered, but where the queue is full it waits."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_SECONDS
    while True:
        try:
            deadline = loop.time() + service.settings.deadline_seconds
            with service.control.admission(deadline, batch.request_id, batch.client) as admission:
                if not admission.upload.grow(len(encoded)):
                    raise QueueFull("Too many uploads at a time. Try again soon.", 1)
                service.check_open(query.hands, batch.client)
                # When the client goes, this task is cancelled: nobody else has to be asked.
                answer = await service.answer(PhotoRequest(encoded, "", query, encode), admission, _never)
                service.metrics.finish(admission.context)
                return answer
        except QueueFull:
            if loop.time() > until:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


async def _never() -> None:
    await asyncio.Event().wait()


async def _compressed(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """gzip, in which each line can be read when it is there."""
    packer = zlib.compressobj(4, wbits=31)
    async for line in lines:
        yield packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
