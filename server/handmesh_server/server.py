"""uvicorn, with what it lacks: limits per connection, and an end that loses no request."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from h11 import SEND_BODY, Request
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from handmesh_server.middleware import MAX_HEADER_BYTES, LocalHosts
from handmesh_server.service import HandService
from handmesh_server.settings import Settings

_KEEP_ALIVE_SECONDS: Final = 5
_QUIET_SECONDS: Final = 1.0  # of a connection, before the end of the server closes it

_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


_UPLOAD_SECONDS: Final = 5.0  # for who was answered so; closed before, its connection would be reset, the answer lost

_READ_AT_ONCE: Final = 16 * 1024  # bytes that are parsed before others have a turn to be refused
# A chunk has two ends of line. h11 takes 7 us for each chunk, so that one connection of single bytes fills a processor.
_FREE_LINE_ENDS, _BYTES_PER_LINE_END = 2000, 16


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, for clients that are many, slow, silent or petty.

    uvicorn limits neither how many connections there are nor how long one takes to send its headers, to finish an
    upload that was already answered, or to read an answer, nor how small its chunks are. Such connections are closed.
    """

    def __init__(
        self, *args: Any, settings: Settings, idle: Counter[str], rejected: set[GuardedProtocol], **kwargs: Any
    ) -> None:
        """Of all connections: `idle`, by address, those without a request in work; `rejected`, those still open."""
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._all_rejected = rejected
        self._idle_by_address, self._address, self._is_idle = idle, "", False
        self._rejected = False
        self._chunk_bytes = self._line_ends = 0
        self._last_activity = self.loop.time()
        self._request_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        settings = self._settings
        self._address = (get_remote_addr(transport) or ("", 0))[0]
        idle_limit = settings.client_connections or max(1, settings.max_connections // 4)
        if len(self.connections) >= settings.max_connections or self._idle_by_address[self._address] >= idle_limit:
            self._reject(transport)
            return
        super().connection_made(transport)
        self._set_idle(True)
        self._expect_request()

    def _reject(self, transport: asyncio.Transport) -> None:
        """What it sends is read and not looked at (`data_received`), until it closes."""
        self._rejected = True
        transport.write(_TOO_MANY)
        if len(self._all_rejected) >= self._settings.max_connections:
            transport.close()
            return
        self._all_rejected.add(self)
        transport.write_eof()
        self._request_timer = self.loop.call_later(_UPLOAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._set_idle(False)
        self._all_rejected.discard(self)
        if not self._rejected:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._last_activity = self.loop.time()
        for start in range(0, len(data), _READ_AT_ONCE):
            if self._rejected or self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            part = data[start : start + _READ_AT_ONCE]
            if self.conn.their_state is SEND_BODY and (b"transfer-encoding", b"chunked") in self.headers:
                self._chunk_bytes += len(part)
                self._line_ends += part.count(b"\r\n")
                if self._line_ends > _FREE_LINE_ENDS + self._chunk_bytes / _BYTES_PER_LINE_END:
                    self._refuse_chunks()
                    return
            super().data_received(part)

    def _refuse_chunks(self) -> None:
        if self.cycle is None or self.cycle.response_started:
            self.transport.abort()
        else:
            self.send_400_response("Chunks of a few bytes are not read.")

    def _set_idle(self, idle: bool) -> None:
        if idle != self._is_idle:
            self._is_idle = idle
            self._idle_by_address[self._address] += 1 if idle else -1
            if not self._idle_by_address[self._address]:
                del self._idle_by_address[self._address]

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete and self._request_timer is not None:
            self._request_timer.cancel()  # from here on the application knows how long it waits
            self._request_timer = None
            self._set_idle(False)

    def handle_websocket_upgrade(self, event: Request) -> None:
        self._stop_timers()  # GuardedWebSocket has its own
        self._set_idle(False)
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        """When the server ends: let go of a client that is not about to ask.

        One that was told to close (middleware.py) has closed. Another may send its next request at this moment, and
        would get no answer if the connection ended now: it has until it was quiet for a while.
        """
        if self.transport.is_closing():
            return
        in_work = self.cycle is not None and not self.cycle.response_complete
        if in_work or self.loop.time() - self._last_activity < _QUIET_SECONDS:
            self.loop.call_later(0.1, self.shutdown)
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        self._last_activity = self.loop.time()
        self._chunk_bytes = self._line_ends = 0
        self._set_idle(True)
        self._expect_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._settings.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_request(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
        self._request_timer = self.loop.call_later(self._settings.header_seconds, self.transport.abort)

    def _stop_timers(self) -> None:
        for timer in (self._request_timer, self._write_timer):
            if timer is not None:
                timer.cancel()


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which would wait forever for a client that does not read its answers."""

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._write_seconds = settings.write_seconds
        self._write_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_write_timer()
        super().connection_lost(exc)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class Server(uvicorn.Server):
    """uvicorn's server with a drain: the first signal refuses new requests, and only later closes the door.

    Between the two, whoever still comes (a balancer that has not looked at /readyz again) is answered 503 instead of
    being cut off. A second signal skips the wait.
    """

    def __init__(self, config: uvicorn.Config, service: HandService, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._address: str | None = None  # until it was announced
        self._drain_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is None:
            self._service.drain()
            self._drain_until = time.monotonic() + self._service.settings.drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._address is not None and self._service.state == "ready":
            self._announce(self._address)
            self._address = None
        drained = self._drain_until is not None and time.monotonic() >= self._drain_until
        return await super().on_tick(counter) or drained


def make_server(settings: Settings, app: Any, announce: Callable[[str], None] = lambda _: None) -> Server:
    """A uvicorn server for `create_app`'s application; `run()` it. `announce` gets its address when it is ready."""
    service: HandService = app.state.service
    return Server(server_config(settings, app), service, announce)


def server_config(settings: Settings, app: Any) -> uvicorn.Config:
    """How uvicorn serves `create_app`'s application."""
    return uvicorn.Config(
        LocalHosts(app) if settings.is_local else app,
        host=settings.host,
        port=settings.port,
        # uvicorn calls it with keywords only, so a partial serves as well as a class.
        http=cast("Any", partial(GuardedProtocol, settings=settings, idle=Counter(), rejected=set())),
        ws=cast("Any", partial(GuardedWebSocket, settings=settings)),
        ws_max_size=settings.stream_frame_bytes,
        ws_per_message_deflate=False,  # frames are compressed, and a small message must not unpack to a large one
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        backlog=2048,  # refusing is our business, not the kernel's, which would let clients wait
    )


def prepare_process() -> None:
    """What a process that serves has for itself alone: its files, and how its threads share the processors."""
    _allow_many_files()
    _share_cpus()


def _share_cpus() -> None:
    """Requests already run beside each other: threads within one would only get in their way."""
    import cv2

    cv2.setNumThreads(1)
    # The model's thread needs Python's lock between any two operations of the network, and would else wait for it for
    # up to 5 ms whenever a request's thread computes in Python.
    sys.setswitchinterval(0.0005)


def _allow_many_files() -> None:
    """As many connections as the system's hard limit allows: shells often start with a soft limit of 1024 files."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft != hard else (soft, hard))
