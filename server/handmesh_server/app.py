"""The HTTP interface: routes, who may use them, and what they say about themselves in OpenAPI."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from handmesh import __version__
from handmesh.errors import HandMeshError
from handmesh.predict import Predictor
from handmesh_server import answers, telemetry
from handmesh_server.admission import RequestContext
from handmesh_server.batches import batch_routes
from handmesh_server.errors import ClientGone, RequestError, Unauthorized
from handmesh_server.input import IMAGE_FIELD, read_body
from handmesh_server.jobs.routes import Jobs, video_routes
from handmesh_server.manual import manual_page
from handmesh_server.middleware import REQUEST_ID, RequestMiddleware
from handmesh_server.page import page_routes
from handmesh_server.problems import PROBLEM_TYPE, ProblemDetails, problem_of, problem_response
from handmesh_server.schemas import BatchEnd, BatchLine, HandsAnswer, HandsQuery, Health, ModelCard, Problem, Topology
from handmesh_server.service import Encode, HandService, PhotoRequest
from handmesh_server.settings import Settings
from handmesh_server.sockets import StreamSocket

MODEL_NAME = "handmesh"  # in the Open Inference Protocol's paths

_PROBLEM_CONTENT = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

_SEND_CHUNK = 256 * 1024  # bytes handed to the network at a time

_ADDRESS = "http://127.0.0.1:8000"  # in the description; the manual page says its own

DESCRIPTION = f"""
Post a photo of a hand, get its 3D mesh, joints, cameras, or a picture with the mesh drawn on it.

    curl --data-binary @photo.jpg {_ADDRESS}/v1/hands                          # JSON
    curl -F image=@photo.jpg {_ADDRESS}/v1/hands -H 'Accept: image/png' -o overlay.png
    curl -F image=@photo.jpg {_ADDRESS}/v1/hands -H 'Accept: model/gltf-binary' -o hand.glb

Lengths are metres, angles radians, places in the photo pixels with the centre of the top left one at (0, 0), after the
photo was turned upright by its EXIF orientation. Errors are problem documents (RFC 9457).
"""


def create_app(
    settings: Settings | None = None, predictor: Predictor | None = None, *, ready_first: bool = False
) -> FastAPI:
    """The ASGI application. The model that the settings name is loaded when it starts, unless `predictor` is given.

    `settings` None: from HANDMESH_... variables, so that this is a factory for any ASGI server. `ready_first`: starting
    takes until the model is warm, and fails when it cannot be loaded, for who sends requests as soon as it has started.
    """
    settings = Settings.from_environment() if settings is None else settings.checked()
    service = HandService(settings, predictor)
    jobs = Jobs(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = service.start()
        if ready_first:
            await asyncio.to_thread(loading.join)
            if service.failure is not None:
                raise service.failure
        jobs.start()
        yield
        await jobs.close()
        await service.close()

    app = FastAPI(
        title="handmesh",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses={"default": {"description": "A problem document.", "content": _PROBLEM_CONTENT}},
        telemetry=cast("Any", telemetry.SETTINGS),
    )
    app.state.service = service
    app.state.jobs = jobs
    app.include_router(_hands_routes(service), dependencies=_authorisation(service))
    refusals = _problems(*((401,) if settings.wants_token else ()), 408, 413, 422, 429, 503, 507)
    app.include_router(batch_routes(service, refusals), dependencies=_authorisation(service))
    videos = video_routes(service, jobs, partial(_problems, *((401,) if settings.wants_token else ())))
    app.include_router(videos, dependencies=_authorisation(service))
    app.include_router(_health_routes(service))
    app.include_router(_manual_routes(app))
    app.include_router(page_routes(settings))
    app.router.add_websocket_route("/v1/stream", StreamSocket(service).serve)
    _name_schemas(app)
    app.add_exception_handler(HTTPException, _on_http_exception)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _on_invalid_query)  # type: ignore[arg-type]
    for kind in (RequestError, HandMeshError):
        app.add_exception_handler(kind, _on_request_error)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", REQUEST_ID),
            expose_headers=(REQUEST_ID, "Server-Timing", "Retry-After"),
        )
    app.add_middleware(
        RequestMiddleware, metrics=service.metrics, control=service.control, leaving=lambda: service.leaving
    )
    return app


def _name_schemas(app: FastAPI) -> None:
    """Of problems and of a batch's lines, too: FastAPI has those of what it would describe as application/json."""
    make = app.openapi
    _, ours = models_json_schema(
        [(one, "serialization") for one in (Problem, BatchLine, BatchEnd)], ref_template="#/components/schemas/{model}"
    )

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        document["components"]["schemas"] = ours["$defs"] | schemas
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _authorisation(service: HandService) -> list[Any]:
    """Dependencies of the routes that a token protects; none without a token, and then OpenAPI shows none."""
    if not service.tokens.required:
        return []
    scheme = HTTPBearer(auto_error=False, description="A token that the server knows.")

    def authorise(request: Request, credentials: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:
        given = b"" if credentials is None else credentials.credentials.encode("utf-8", "surrogateescape")
        name = service.tokens.name_of([given])
        if name is None:
            raise Unauthorized("Send a token of the server: 'Authorization: Bearer TOKEN'.")
        context = request.state.admission.context
        context.client = context.token = name

    return [Depends(authorise)]


class _HandsResponse(Response):
    """Sent in parts, each when the client has taken the one before."""

    def __init__(self, answer: answers.Answer, context: RequestContext) -> None:
        timing = ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in context.seconds.items())
        super().__init__(
            answer.content, media_type=answer.media_type, headers={"Server-Timing": timing, **answer.headers}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, max(len(body), 1), _SEND_CHUNK):
            part = bytes(body[start : start + _SEND_CHUNK])
            more = start + _SEND_CHUNK < len(body)
            await send({"type": "http.response.body", "body": part, "more_body": more})


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meaning = {
        401: "No token, or a wrong one.",
        404: "There is none, or none any more.",
        406: "Accept names nothing that there is.",
        408: "The upload took too long.",
        409: "Not done yet.",
        413: "Too many bytes or pixels.",
        415: "Nothing that is read here.",
        422: "An image that cannot be decoded, or a query that cannot be right.",
        429: "The queue is full: try again after Retry-After seconds.",
        503: "The model is being loaded, or the server is shutting down.",
        504: "The deadline passed.",
        507: "There is no room for the upload.",
    }
    return {status: {"description": meaning[status], "content": _PROBLEM_CONTENT} for status in statuses}


async def _answer_photo(
    service: HandService, request: Request, query: HandsQuery, encode: Encode, *, draws: bool = False
) -> Response:
    """What any route does with a photo that is posted to it: its hands, in the form that `encode` gives them."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/"):  # else the form may have the rest
        query.check()
    service.check_open(query.hands, request.state.admission.context.client)
    settings, metrics, admission = service.settings, service.metrics, request.state.admission
    context = admission.context
    try:
        with metrics.stage("read", context):
            body = await read_body(
                request.stream(), request.headers, settings.max_body_bytes, settings.body_seconds, admission.upload
            )
    except ClientDisconnect:
        raise ClientGone("The client went away during the upload.") from None
    admission.upload.shrink_to(len(body))
    context.deadline = time.monotonic() + settings.deadline_seconds
    posted = PhotoRequest(body, content_type, query, encode, draws)
    del body  # `posted` lets go of it when the photo is decoded

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer = await service.answer(posted, admission, disconnected)
    metrics.finish(context)
    request.state.hands = answer.hands
    return _HandsResponse(answer, context)


def _hands_routes(service: HandService) -> APIRouter:
    router = APIRouter()
    settings = service.settings
    unauthorised = (401,) if settings.wants_token else ()
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "properties": {IMAGE_FIELD: binary["schema"], **HandsQuery.model_json_schema()["properties"]},
            "required": [IMAGE_FIELD],
            "additionalProperties": False,
        }
    }
    body = {
        "required": True,
        "description": f"A JPEG, PNG, WebP, GIF, BMP or TIFF photo of at most {settings.max_body_bytes:,} bytes and "
        f"{settings.max_pixels:,} pixels: as it is, whatever Content-Type it is sent with, or as the field "
        f"`{IMAGE_FIELD}` of a form, whose other fields may say what the query does not.",
        "content": {
            "image/jpeg": binary,
            "image/png": binary,
            "image/webp": binary,
            "application/octet-stream": binary,
            "multipart/form-data": form,
        },
    }

    @router.post(
        "/v1/hands",
        tags=["hands"],
        operation_id="find_hands",
        summary="A photo in, its hands out",
        response_model=None,
        responses={
            200: {
                "description": "What Accept asked for; JSON when it asked for nothing. Server-Timing says where the "
                "time went. A photo without hands is answered with an empty list, an empty scene, or itself.",
                "model": HandsAnswer,
                "content": {name: binary for name in answers.MEDIA_TYPES if name != answers.JSON},
            },
            **_problems(*unauthorised, 406, 408, 413, 415, 422, 429, 503, 504),
        },
        openapi_extra={"requestBody": body},
    )
    async def hands(request: Request, query: Annotated[HandsQuery, Query()]) -> Response:
        media_type = answers.negotiate(request.headers.get("accept"))
        encode = partial(
            answers.encode_answer,
            media_type=media_type,
            request_id=request.state.request_id,
            gzip=answers.takes_gzip(request.headers.get("accept-encoding")),
        )
        return await _answer_photo(service, request, query, encode, draws=media_type.startswith("image/"))

    @cache
    def topology(gzip: bool) -> tuple[bytes, dict[str, str]]:
        content, headers = answers.compressed(answers.topology(service.topology_hand()), gzip)
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return content, headers | {"ETag": tag, "Cache-Control": "private, max-age=86400"}

    @router.get(
        "/v1/topology",
        tags=["hands"],
        operation_id="get_topology",
        summary="Faces, joint names and bones: the same for all hands",
        response_model=None,
        responses={
            200: {"model": Topology, "description": "Keep it: ETag says when it changes."},
            304: {"description": "It is what If-None-Match names."},
            **_problems(*unauthorised, 503),
        },
    )
    async def get_topology(request: Request) -> Response:
        content, headers = topology(answers.takes_gzip(request.headers.get("accept-encoding")))
        known = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=answers.JSON, headers=headers)

    @router.get(
        "/v1/model",
        tags=["hands"],
        operation_id="get_model",
        summary="Which model answers, with which hand, on what, under which licences",
        response_model=ModelCard,
        responses={200: {"description": "The model's card."}, **_problems(*unauthorised, 503)},
    )
    async def get_model() -> Any:
        return service.card()

    @router.get(
        "/metrics",
        tags=["operation"],
        operation_id="get_metrics",
        response_class=PlainTextResponse,
        summary="Counters, in Prometheus's text format",
        response_model=None,
        responses={
            200: {"description": "Counters.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **_problems(*unauthorised),
        },
    )
    async def get_metrics() -> Response:
        return Response(await service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _health_routes(service: HandService) -> APIRouter:
    """For Kubernetes and load balancers, without a token; and the Open Inference Protocol's names for the same."""
    router = APIRouter(tags=["operation"])
    not_ready: dict[int | str, dict[str, Any]] = {
        200: {"model": Health, "description": "Yes."},
        503: {"model": Health, "description": "Not now."},
    }

    @router.get("/livez", operation_id="livez", summary="Is the process alive?", responses=not_ready)
    @router.get("/v2/health/live", operation_id="v2_live", summary="The same as /livez", responses=not_ready)
    async def livez() -> Health:
        return JSONResponse({"status": "failed"}, 503) if service.failure else Health(status="live")  # type: ignore[return-value]

    @router.get("/readyz", operation_id="readyz", summary="Is a photo answered now?", responses=not_ready)
    @router.get("/v2/health/ready", operation_id="v2_ready", summary="The same as /readyz", responses=not_ready)
    @router.get(
        f"/v2/models/{MODEL_NAME}/ready",
        operation_id="v2_model_ready",
        summary="The same as /readyz",
        responses=not_ready,
    )
    async def readyz() -> Response:
        state = await service.readiness()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get(
        "/v2", operation_id="v2_server", summary="Open Inference Protocol: the server's name", response_model=None
    )
    async def v2_server() -> dict[str, Any]:
        return {"name": "handmesh", "version": __version__, "extensions": []}

    return router


def _manual_routes(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        page = manual_page(app.openapi(), _ADDRESS, str(request.base_url).rstrip("/"))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return router


async def _on_request_error(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem is None:
        raise error  # ours, not the client's: logged and answered by the middleware
    request.app.state.service.metrics.rejected.labels(problem.reason).inc()
    request.state.reason = problem.reason
    return problem_response(problem, request.state.request_id)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    detail = {404: "There is no such page; /docs says what there is.", 405: "Not with this method."}.get(
        error.status_code, str(error.detail)
    )
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of the first route with this path alone
        path = getattr(request.scope.get("route"), "path", None)
        methods = [method.upper() for method in request.app.openapi()["paths"].get(path, ())]
        headers["Allow"] = ", ".join(sorted(methods)) or headers.get("Allow", "")
    return problem_response(ProblemDetails(error.status_code, "http", detail, headers), request.state.request_id)


async def _on_invalid_query(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]  # without the input: it may be long, and it is the client's
    name = ".".join(str(part) for part in first["loc"][1:])
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    request.app.state.service.metrics.rejected.labels("invalid_query").inc()
    request.state.reason = "invalid_query"
    problem = ProblemDetails(422, "invalid_query", f"Query parameter {name[:100]}: {what}.")
    return problem_response(problem, request.state.request_id)
