"""Requests to the service over one connection that is kept, by Python's own http.client."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import IO, Final
from urllib.parse import urlsplit

from handmesh.errors import ConfigError, HandMeshError

# Asked to come back, and for how long at most at once.
_LATER: Final = (429, 503)
_MAX_WAIT_SECONDS: Final = 30.0

# What a client reads of an answer that is no answer of ours.
_MAX_PROBLEM_BYTES: Final = 65_536

_PART_BYTES: Final = 1 << 20  # of an answer, read at a time


class ServiceError(HandMeshError):
    """The service refused, or cannot be reached.

    `status` is the HTTP status, 0 without an answer; `reason` a word for programs; the service's log has `request_id`.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "unreachable", request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.request_id = status, reason, request_id


class Connection:
    """To one service. For one thread at a time."""

    def __init__(self, url: str, token: str | None, *, timeout: float, patience: float) -> None:
        """`timeout`: seconds for the network to do something. `patience`: seconds to try again where it is asked for.

        Raises ConfigError when `url` is none, or the token is nothing that can be sent.
        """
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises where it is none
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is no address of a service: wanted http://host:port, or https://host.")
        self.address = parts
        self._timeout, self._patience = timeout, patience
        self.headers = {} if token is None else {"Authorization": f"Bearer {_checked_token(token)}"}
        self._kept: HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """An answer of success, which is to be read before the next request. Raises ServiceError."""
        until = time.monotonic() + self._patience
        while True:
            response = self._once(method, path, body, headers or {})
            if response.status < 400:
                return response
            try:
                problem = response.read(_MAX_PROBLEM_BYTES)
                if not response.isclosed():  # there is more of it
                    response.close()
                    self.close()
            except (OSError, HTTPException):  # the status says it, too
                problem = b""
                self.close()
            error = refusal(response.status, problem)
            seconds = _seconds_to_wait(response)
            if response.status not in _LATER or time.monotonic() + seconds > until:
                raise error
            time.sleep(seconds)

    def content(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """A whole answer of success. Raises ServiceError, also where it was cut off."""
        return b"".join(self.parts(method, path, body, headers))

    def parts(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[bytes]:
        """As `content`, for one that is not to be held in memory."""
        response = self.request(method, path, body, headers)
        try:
            while part := response.read(_PART_BYTES):
                yield part
            if response.length:  # http.client says nothing of it where parts are read
                raise IncompleteRead(b"", response.length)
        except (OSError, HTTPException) as error:
            self.close()
            raise ServiceError(f"The answer was cut off: {_words(error)}.", 0, "cut_off") from error

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _once(self, method: str, path: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]) -> HTTPResponse:
        sent = {**self.headers, **headers}
        if body is not None and not isinstance(body, bytes):
            sent["Content-Length"] = str(os.fstat(body.fileno()).st_size)
        for is_new in (self._kept is None, True):
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            try:
                return self._sent(method, self.address.path.rstrip("/") + path, body, sent)
            except (OSError, HTTPException) as error:
                self.close()
                if is_new or isinstance(error, TimeoutError):  # one that was kept may have been closed meanwhile
                    raise ServiceError(f"{self.address.geturl()} cannot be reached: {_words(error)}.") from error
        raise AssertionError

    def _sent(self, method: str, path: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]) -> HTTPResponse:
        if self._kept is None:
            host, port = self.address.hostname or "", self.address.port
            if self.address.scheme == "https":
                self._kept = HTTPSConnection(host, port, timeout=self._timeout, context=ssl.create_default_context())
            else:
                self._kept = HTTPConnection(host, port, timeout=self._timeout)
        with suppress(BrokenPipeError, ConnectionResetError):  # an upload may be refused before its end
            self._kept.request(method, path, body, headers)
        response = self._kept.getresponse()
        if response.will_close:
            self._kept = None  # the answer keeps the socket
        return response


def _checked_token(token: str) -> str:
    """Without the line's end that it had in its file."""
    token = token.strip()
    if not token or not (token.isascii() and token.isprintable()):
        raise ConfigError("The token is empty, or has characters that no header can hold: wanted the server's own.")
    return token


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _seconds_to_wait(response: HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "1")
    return min(float(text), _MAX_WAIT_SECONDS) if text.isdigit() else 1.0


def refusal(status: int, content: bytes) -> ServiceError:
    """Of an answer that is a problem document, or none of ours."""
    try:
        problem = json.loads(content)
        return ServiceError(str(problem["detail"]), status, str(problem["reason"]), str(problem["request_id"]))
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The service answered {status}.", status, "http")
