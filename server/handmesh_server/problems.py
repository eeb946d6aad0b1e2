"""Errors as the client sees them: RFC 9457 problem documents, and the one table from exceptions to status codes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.responses import JSONResponse

from handmesh.errors import ConfigError, ImageError, ImageFormatError, ImageTooLargeError
from handmesh_server import errors

PROBLEM_TYPE: Final = "application/problem+json"

# The first that fits, so special ones come before general ones. What is not here is the server's fault: 500.
STATUS: Final[tuple[tuple[type[Exception], int, str | None], ...]] = (
    (ImageTooLargeError, 413, "too_large"),
    (ImageFormatError, 415, "unsupported_image"),
    (ImageError, 422, "unreadable_image"),
    (ConfigError, 422, "invalid_query"),
    (errors.Unauthorized, 401, None),
    (errors.Forbidden, 403, None),
    (errors.HostForbidden, 403, None),
    (errors.NotFound, 404, None),
    (errors.NotAcceptable, 406, None),
    (errors.UploadTooSlow, 408, None),
    (errors.NotDone, 409, None),
    (errors.UploadTooLarge, 413, None),
    (errors.ClipFormatInvalid, 415, None),
    (errors.UploadInvalid, 422, None),
    (errors.PhotoRefused, 422, None),
    (errors.QueryInvalid, 422, None),
    (errors.QueueFull, 429, None),
    (errors.HeadersTooLarge, 431, None),
    (errors.StreamsFull, 429, None),
    (errors.ClientGone, 499, None),
    (errors.NotReady, 503, None),
    (errors.DeadlineExpired, 504, None),
    (errors.StorageFull, 507, None),
)


class ProblemDetails(NamedTuple):
    """What an exception is to the client."""

    status: int
    reason: str  # a word for programs
    detail: str  # for people
    headers: Mapping[str, str] | None = None


def problem_of(error: Exception) -> ProblemDetails | None:
    """None when the exception is not the client's business."""
    for kind, status, reason in STATUS:
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, errors.RequestError) and error.retry_after is not None:
                headers["Retry-After"] = str(error.retry_after)
            if isinstance(error, errors.Unauthorized):
                headers["WWW-Authenticate"] = "Bearer"
            return ProblemDetails(status, reason or str(getattr(error, "reason", "error")), str(error), headers)
    return None


def problem_document(problem: ProblemDetails, request_id: str) -> dict[str, object]:
    """schemas.Problem."""
    known = problem.status in HTTPStatus._value2member_map_
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase if known else "Client Closed Request",
        "status": problem.status,
        "detail": problem.detail,
        "reason": problem.reason,
        "request_id": request_id,
    }


def problem_response(problem: ProblemDetails, request_id: str) -> JSONResponse:
    """A problem document as an answer."""
    document = problem_document(problem, request_id)
    return JSONResponse(document, problem.status, headers=problem.headers, media_type=PROBLEM_TYPE)
