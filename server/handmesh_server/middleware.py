"""Around every request: admission, id, a line in the log, a count, headers for safety, a problem and no traceback."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handmesh_server.admission import AdmissionControl, RequestContext
from handmesh_server.errors import HeadersTooLarge, HostForbidden
from handmesh_server.metrics import Metrics
from handmesh_server.problems import ProblemDetails, problem_of, problem_response

logger = logging.getLogger("handmesh_server.access")

REQUEST_ID: Final = "X-Request-ID"

# What no client is told apart from another by: paths that are none of ours are counted as one.
_UNKNOWN_ROUTE: Final = "unknown"
_QUIET_ROUTES: Final = frozenset(("/livez", "/readyz", "/metrics"))
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

# Set unless the answer has its own: nothing is guessed, framed, cached or allowed to load anything.
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_DISCARD_SECONDS: Final = 10.0  # for the rest of an upload that nobody wants any more
CLIENT_GONE: Final = 499  # nginx's, for the log: nobody receives it


MAX_HEADER_BYTES: Final = 16 * 1024  # of the request line and all headers


def check_headers(scope: Scope) -> None:
    """Raises HeadersTooLarge."""
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"The headers have {size:,} bytes; the limit is {MAX_HEADER_BYTES:,}.")


class RequestMiddleware:
    """Outermost. Pure ASGI, so that answers are streamed and disconnections seen."""

    def __init__(self, app: ASGIApp, metrics: Metrics, control: AdmissionControl, leaving: Callable[[], bool]) -> None:
        """`leaving()`: whether the server is about to end; clients are then told to come back by a new connection."""
        self.app = app
        self.metrics = metrics
        self.control = control
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        method = scope["method"] if scope["method"] in _METHODS else "other"
        scope = {**scope, "method": "GET"} if method == "HEAD" else scope  # the same, without the body
        request_id = _request_id(Headers(scope=scope))
        client = (scope.get("client") or ("",))[0]
        admission = self.control.admission(request_id=request_id, client=client)
        scope.setdefault("state", {}).update(request_id=request_id, admission=admission)
        status, uploaded = 0, False

        async def receive_all() -> Message:
            nonlocal uploaded
            message = await receive()
            uploaded = not message.get("more_body", False)
            return message

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if self.leaving():
                    headers["Connection"] = "close"
                if self.leaving() or _closes(scope):
                    # A connection that is closed with an upload unread is reset, and its answer lost.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_DISCARD_SECONDS):
                            while not uploaded:
                                await receive_all()
                headers[REQUEST_ID] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            check_headers(scope)
            with admission:  # until the last byte of the answer is sent
                await self.app(scope, receive_all, send_named)
        except HeadersTooLarge as error:
            problem = problem_of(error)
            assert problem is not None
            scope["state"]["reason"] = problem.reason
            await problem_response(problem, request_id)(scope, receive, send_named)
        except Exception:
            logger.exception("failed", extra={"request_id": request_id})
            scope["state"]["reason"] = "error"
            if status:
                raise  # half an answer is out: the connection must break
            problem = ProblemDetails(500, "error", "The server failed; its log has this request id.")
            response = problem_response(problem, request_id)
            await response(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
            self.metrics.requests.labels(method, route, str(status or CLIENT_GONE)).inc()
            self.metrics.latency.labels(route).observe(seconds)
            # Probes and scrapes come every few seconds and say nothing while they are answered.
            quiet = method == "GET" and status < 400 and (route in _QUIET_ROUTES or route.startswith("/v2"))
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %d",
                method,
                route,
                status,
                extra={
                    "request_id": request_id,
                    "method": method,
                    "path": scope["path"][:200],
                    "status": status or CLIENT_GONE,
                    "seconds": round(seconds, 4),
                    "client": client,
                    **({"token": admission.context.token} if admission.context.token else {}),
                    **_fate(scope["state"], admission.context, status),
                },
            )


def _closes(scope: Scope) -> bool:
    """Whether the answer ends the connection (RFC 9112, section 9.3), as nginx asks for by default.

    Who waits for permission to send an upload has not begun to.
    """
    headers = Headers(scope=scope)
    closes = scope["http_version"] == "1.0" or "close" in headers.get("connection", "").lower()
    return closes and "expect" not in headers


def _fate(state: dict[str, Any], context: RequestContext, status: int) -> dict[str, Any]:
    """What became of the request, for the log: hands, or why there are none; and where the time went."""
    fate: dict[str, Any] = {name: state[name] for name in ("hands", "reason") if name in state}
    if not status:
        fate["reason"] = "disconnected"
    if context.seconds:
        fate["timing"] = {stage: round(seconds, 4) for stage, seconds in context.seconds.items()}
    return fate


def _request_id(headers: Headers) -> str:
    """The caller's X-Request-ID, or the trace id of a W3C traceparent, or a new one."""
    given = headers.get(REQUEST_ID, "")
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given):
        return given
    trace = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", headers.get("traceparent", ""))
    return trace.group(1) if trace else secrets.token_hex(16)


class LocalHosts:
    """Answers only those who call this machine by its own names.

    A page of another site can have its name point to 127.0.0.1 (DNS rebinding); to the browser the server is then a
    part of that site, whose scripts may read its answers. The name gives it away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else ""
        if _is_local(host):
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        logger.info(
            "refused: called by another host's name",
            extra={
                "request_id": request_id,
                "path": scope["path"][:200],
                "host": host[:200],
                "status": 403,
                "reason": HostForbidden.reason,
            },
        )
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        problem = problem_of(
            HostForbidden(
                f"This server is for its own machine, as localhost, and was called {host[:200]!r}. Behind a proxy that "
                "asks who calls, start it with --insecure (HANDMESH_INSECURE=1), or with a token."
            )
        )
        assert problem is not None
        response = problem_response(problem, request_id)
        response.headers[REQUEST_ID] = request_id
        await response(scope, receive, send)


def _is_local(host: str) -> bool:
    """Of a Host header; a program that sends none is no browser."""
    name = re.sub(r":[0-9]*$", "", host).lower().strip("[]")
    own = name in ("", "localhost", "::1") or name.endswith(".localhost")
    return own or re.fullmatch(r"127(\.[0-9]+){3}", name) is not None
