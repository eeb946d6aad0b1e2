"""Why a request is not answered. app.py has the table from these to status codes."""

from __future__ import annotations

import math


class RequestError(Exception):
    """Root. The message is for the client; `reason` is a word for metrics and programs."""

    reason = "refused"
    retry_after: int | None = None  # seconds


class NotReady(RequestError):
    reason = "not_ready"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason  # "loading", "draining" or "failed"
        self.retry_after = 5


class QueueFull(RequestError):
    def __init__(self, message: str, seconds: float, reason: str = "queue_full") -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = min(max(1, math.ceil(seconds)), 60)


class DeadlineExpired(RequestError):
    reason = "deadline"


class ClientGone(RequestError):
    """Nobody hears this."""

    reason = "disconnected"


class PhotoRefused(RequestError):
    """It ended a worker before."""

    reason = "photo_refused"


class UploadTooLarge(RequestError):
    reason = "too_large"


class UploadTooSlow(RequestError):
    reason = "upload_timeout"


class UploadInvalid(RequestError):
    """A multipart body that is none, or has no image."""

    reason = "invalid_upload"


class QueryInvalid(RequestError):
    reason = "invalid_query"


class NotAcceptable(RequestError):
    reason = "not_acceptable"


class HeadersTooLarge(RequestError):
    reason = "headers_too_large"


class Forbidden(RequestError):
    """A web page that may not open a stream."""

    reason = "forbidden_origin"


class HostForbidden(RequestError):
    """A name that is not this machine's own."""

    reason = "forbidden_host"


class StreamsFull(RequestError):
    reason = "streams_full"
    retry_after = 10


class Unauthorized(RequestError):
    reason = "unauthorized"


class StorageFull(RequestError):
    """No room on the disk, or none that we may use."""

    reason = "storage_full"
    retry_after = 60


class ClipFormatInvalid(RequestError):
    """Bytes that are no clip that we read."""

    reason = "unsupported_clip"


class NotFound(RequestError):
    reason = "not_found"


class NotDone(RequestError):
    """The result of a job that has none yet, or never will."""

    reason = "not_done"
    retry_after = 1
