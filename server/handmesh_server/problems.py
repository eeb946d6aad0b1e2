"""Errors as the client sees them: RFC 9457 problem documents, and the one table from exceptions to status codes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.responses import JSONResponse

from handmesh.errors import ConfigError, ImageError, ImageFormatError, ImageTooLargeError
from handmesh_server import refusals

PROBLEM_TYPE: Final = "application/problem+json"

# The first that fits, so special ones come before general ones. What is not here is the server's fault: 500.
STATUS: Final[tuple[tuple[type[Exception], int, str | None], ...]] = (
    (ImageTooLargeError, 413, "too_large"),
    (ImageFormatError, 415, "unsupported_image"),
    (ImageError, 422, "unreadable_image"),
    (ConfigError, 422, "invalid_query"),
    (refusals.Unauthorized, 401, None),
    (refusals.Forbidden, 403, None),
    (refusals.NotAcceptable, 406, None),
    (refusals.UploadTooSlow, 408, None),
    (refusals.UploadTooLarge, 413, None),
    (refusals.UploadInvalid, 422, None),
    (refusals.QueryInvalid, 422, None),
    (refusals.QueueFull, 429, None),
    (refusals.StreamsFull, 429, None),
    (refusals.ClientGone, 499, None),
    (refusals.NotReady, 503, None),
    (refusals.DeadlineExpired, 504, None),
)


def problem_response(
    status: int, reason: str, detail: str, request_id: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem document; schemas.Problem."""
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Client Closed Request"
    return JSONResponse(
        {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": detail,
            "reason": reason,
            "request_id": request_id,
        },
        status,
        headers=headers,
        media_type=PROBLEM_TYPE,
    )


class Verdict(NamedTuple):
    """What an exception is to the client."""

    status: int
    reason: str
    headers: dict[str, str]


def verdict_on(error: Exception) -> Verdict | None:
    """None when the exception is not the client's business."""
    for kind, status, reason in STATUS:
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, refusals.Refused) and error.retry_after is not None:
                headers["Retry-After"] = str(error.retry_after)
            if isinstance(error, refusals.Unauthorized):
                headers["WWW-Authenticate"] = "Bearer"
            return Verdict(status, reason or str(getattr(error, "reason", "error")), headers)
    return None
