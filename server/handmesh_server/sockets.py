"""/v1/stream: a WebSocket that takes frames of a camera and answers each with the hand in it.

Who may open one is decided before the upgrade, so that a stranger never gets a connection: the token comes in the
subprotocol list, the one header that a web page can set, and a page of another origin is refused, since browsers let
any page open a WebSocket to anywhere. Of frames that come faster than they are answered only the newest is kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import secrets
import time
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from handmesh.errors import HandMeshError
from handmesh_server.errors import (
    ClientGone,
    Forbidden,
    NotReady,
    QueryInvalid,
    RequestError,
    StreamsFull,
    Unauthorized,
)
from handmesh_server.problems import problem_of, problem_response
from handmesh_server.service import HandService
from handmesh_server.settings import Settings
from handmesh_server.stream import Frame, StreamFollower, StreamOptions, encode_frame
from handmesh_server.tokens import Tokens

logger = logging.getLogger("handmesh_server.access")

# The first is what we speak; the second, with base64url (RFC 4648, section 5, unpadded) of the token behind it, how a
# browser shows its token: its WebSocket sends no header of the page's choice but Sec-WebSocket-Protocol.
PROTOCOL: Final = "handmesh.v1"
BEARER: Final = "handmesh.bearer."

# Close codes (RFC 6455, section 7.4, and IANA's registry; 4000 and above are ours).
POLICY, FAILED, RESTART, TRY_LATER, IDLE = 1008, 1011, 1012, 1013, 4408

_MAX_OPTIONS_LENGTH: Final = 4096  # characters
_MAX_BAD_FRAMES: Final = 10  # in a row: this is no camera
_QUIET_SECONDS: Final = 2.0  # without a frame, and another camera may have the place
_LEAVE_SECONDS: Final = 2.0  # for it to go
_MAX_REASON: Final = 123  # bytes of UTF-8 (RFC 6455, section 5.5)

# A frame is held while it is received, while it waits, and while it is in work.
_FRAMES_HELD: Final = 3


class StreamSocket:
    """The endpoint. Counts the streams that are open."""

    def __init__(self, service: HandService) -> None:
        self._service = service
        self._open: set[_Stream] = set()
        service.metrics.watch(service.metrics.streams, lambda: len(self._open))

    async def serve(self, websocket: WebSocket) -> None:
        settings, metrics = self._service.settings, self._service.metrics
        request_id = secrets.token_hex(16)
        try:
            token = check_handshake(websocket, settings, self._service.tokens)
        except RequestError as error:
            await self._deny(websocket, error, request_id)
            return
        await websocket.accept(PROTOCOL)
        started = time.monotonic()
        stream = _Stream(websocket, self._service, request_id, token or (websocket.client or ("",))[0])
        try:
            self._service.check_open(0)
            await self._make_room(stream.client)
            with self._service.control.admission() as admission:
                frames = _FRAMES_HELD * settings.stream_frame_bytes
                if theirs := self._all_that_one_may_have(stream.client):
                    raise StreamsFull(f"{len(theirs)} cameras of yours are being followed, the limit of each client.")
                if len(self._open) >= settings.max_streams or not admission.upload.grow(frames):
                    raise StreamsFull(f"{len(self._open)} cameras are being followed, the limit. Try again soon.")
                self._open.add(stream)
                await stream.run()
        except (NotReady, StreamsFull) as error:
            metrics.rejected.labels(error.reason).inc()
            await stream.close(RESTART if error.reason == "draining" else TRY_LATER, str(error))
        except (ClientGone, WebSocketDisconnect):
            pass
        except Exception:
            logger.exception("failed", extra={"request_id": request_id})
            await stream.close(FAILED, f"The server failed; its log has the request id {request_id}.")
        finally:
            self._open.discard(stream)
            stream.ended.set()
            logger.info(
                "stream of %d frames, %d answered",
                stream.received,
                stream.answered,
                extra={
                    "request_id": request_id,
                    "path": websocket.url.path[:200],
                    "seconds": round(time.monotonic() - started, 4),
                    "client": (websocket.client or ("",))[0],
                    "token": token,
                },
            )

    def _all_that_one_may_have(self, client: str) -> list[_Stream]:
        """Those of a client that has as many as one client may; else none."""
        theirs = [stream for stream in self._open if stream.client == client]
        most = self._service.settings.max_streams
        return theirs if len(theirs) >= self._service.client_part(most) < most else []

    async def _make_room(self, client: str) -> None:
        """Where all places are taken, or a client's part of them, that which was quiet for longest is free, if long."""
        full = len(self._open) >= self._service.settings.max_streams
        places = self._all_that_one_may_have(client) or (self._open if full else ())
        quiet = max(places, key=lambda stream: stream.quiet_seconds, default=None)
        if quiet is not None and quiet.quiet_seconds >= _QUIET_SECONDS:
            quiet.make_room()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(quiet.ended.wait(), _LEAVE_SECONDS)

    async def _deny(self, websocket: WebSocket, error: RequestError, request_id: str) -> None:
        problem = problem_of(error)
        assert problem is not None
        self._service.metrics.rejected.labels(problem.reason).inc()
        logger.info(
            "stream refused", extra={"request_id": request_id, "status": problem.status, "reason": problem.reason}
        )
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(problem_response(problem, request_id))
        else:  # an ASGI server that can only say 403
            await websocket.close(POLICY)


def check_handshake(websocket: WebSocket, settings: Settings, tokens: Tokens) -> str:
    """-> the name of the token that was shown, or "". Raises Forbidden, Unauthorized or QueryInvalid."""
    origin = websocket.headers.get("origin")
    if origin is not None and not _may_connect(origin, websocket.headers.get("host", ""), settings.cors_origins):
        raise Forbidden(f"Web pages of {origin[:200]} may not open a stream here; cors_origins is the setting for it.")
    offered: list[str] = websocket.scope.get("subprotocols", [])
    named = ""
    if tokens.required:
        shown = [_decoded(one.removeprefix(BEARER)) for one in offered if one.startswith(BEARER)]
        scheme, _, credentials = websocket.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            shown.append(credentials.strip().encode("utf-8", "surrogateescape"))
        name = tokens.name_of(shown)
        if name is None:
            raise Unauthorized(
                f"Send a token of the server: 'Authorization: Bearer TOKEN', or the subprotocol {BEARER}BASE64URL."
            )
        named = name
    if PROTOCOL not in offered:
        raise QueryInvalid(f"Offer the subprotocol {PROTOCOL}: Sec-WebSocket-Protocol: {PROTOCOL}.")
    return named


def _may_connect(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    if "*" in allowed or origin in allowed:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def _decoded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


class _Inbox:
    """What came and was not looked at yet: only the newest of each kind."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.gone = asyncio.Event()
        self.frame: tuple[int, bytes, float] | None = None  # its number, and when it came
        self.options: str | None = None

    def take_frame(self) -> tuple[int, bytes, float] | None:
        frame, self.frame = self.frame, None
        return frame

    def take_options(self) -> str | None:
        options, self.options = self.options, None
        return options


class _Stream:
    """One connection, from accept to close."""

    def __init__(self, websocket: WebSocket, service: HandService, request_id: str, client: str) -> None:
        self._websocket = websocket
        self._service = service
        self._request_id = request_id
        self.client = client
        self._inbox = _Inbox()
        self._follower = StreamFollower()
        self.received = 0
        self.answered = 0
        self._is_answering = self._has_to_go = False
        self._last_frame = time.monotonic()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Until one side ends it. Raises NotReady, ClientGone, and what is our own fault."""
        await self._say({"type": "ready", "request_id": self._request_id, "protocol": PROTOCOL})
        reading = asyncio.create_task(self._read())
        idle = self._service.settings.stream_idle_seconds
        try:
            bad = 0
            while True:
                try:
                    async with asyncio.timeout(max(0.0, self._last_frame + idle - time.monotonic())):
                        await self._inbox.changed.wait()
                except TimeoutError:
                    await self.close(IDLE, f"No frame came for {idle:g} s.")
                    return
                self._inbox.changed.clear()
                if self._inbox.gone.is_set():
                    return
                if self._has_to_go:
                    await self.close(IDLE, "No frame came, and another camera has the place now.")
                    return
                text = self._inbox.take_options()
                if text is not None and not await self._set_options(text):
                    return
                frame = self._inbox.take_frame()
                if frame is None:
                    continue
                self._is_answering = True
                bad = 0 if await self._answer(*frame) else bad + 1
                self._is_answering, self._last_frame = False, time.monotonic()
                if bad >= _MAX_BAD_FRAMES:
                    await self.close(POLICY, f"{bad} frames in a row were no images.")
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @property
    def quiet_seconds(self) -> float:
        """How long it has been waiting for a frame."""
        return 0.0 if self._is_answering else time.monotonic() - self._last_frame

    def make_room(self) -> None:
        """End it, for another."""
        self._has_to_go = True
        self._inbox.changed.set()

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client was faster
            await self._websocket.close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))

    async def _read(self) -> None:
        inbox, skipped = self._inbox, self._service.metrics.frames.labels("skipped")
        while not inbox.gone.is_set():
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                inbox.gone.set()
            elif message.get("bytes") is not None:
                if inbox.frame is not None:
                    skipped.inc()
                inbox.frame = (self.received, message["bytes"], time.monotonic())
                self.received += 1
            elif message.get("text") is not None:
                inbox.options = message["text"][: _MAX_OPTIONS_LENGTH + 1]
            inbox.changed.set()

    async def _set_options(self, text: str) -> bool:
        """False when the connection was closed for it."""
        try:
            if len(text) > _MAX_OPTIONS_LENGTH:
                raise ValueError(f"it has more than {_MAX_OPTIONS_LENGTH:,} characters")
            self._follower.options = StreamOptions.model_validate_json(text)
        except ValueError as error:
            first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
            where = ".".join(str(part) for part in first["loc"]) if first else ""
            why = f"{where}: {first['msg'].removeprefix('Value error, ')}" if first else str(error)
            await self.close(POLICY, f"A text message says what is wanted, as JSON; this one not: {why.lstrip(': ')}")
            return False
        return True

    async def _answer(self, number: int, content: bytes, arrived: float) -> bool:
        """False when the frame was no image that we read."""
        service, started = self._service, time.monotonic()
        admission = service.control.admission(
            started + service.settings.deadline_seconds, self._request_id, self.client
        )

        async def gone() -> None:
            await self._inbox.gone.wait()

        try:
            with admission:
                photo, hands = await service.follow(content, arrived, self._follower, admission, gone)
        except (NotReady, ClientGone):
            raise
        except (RequestError, HandMeshError) as error:
            problem = problem_of(error)
            if problem is None:
                raise
            service.metrics.frames.labels("refused").inc()
            service.metrics.rejected.labels(problem.reason).inc()
            await self._say(
                {
                    "type": "error",
                    "frame": number,
                    "status": problem.status,
                    "reason": problem.reason,
                    "detail": problem.detail,
                    "retry_after": int((problem.headers or {}).get("Retry-After", 0)),
                }
            )
            return not isinstance(error, HandMeshError)
        width, height = photo.size
        server_ms, model_ms = 1000 * (time.monotonic() - started), 1000 * admission.context.seconds.get("model", 0.0)
        frame = Frame(number, width, height, server_ms, model_ms)
        await self._websocket.send_bytes(encode_frame(frame, hands, self._follower.options))
        self.answered += 1
        service.metrics.frames.labels("answered").inc()
        service.metrics.finish(admission.context)
        return True

    async def _say(self, event: dict[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(event))
