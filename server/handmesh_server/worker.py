"""One worker: the application in a process of its own, on connections that the supervisor (supervisor.py) accepted.

It is told what to do, and tells what it does, in pickled tuples over a socket pair; connections come over a second one.

    from the supervisor                              to the supervisor
    setup: settings, application, quarantine         ("alive", Report)              twice a second, by the event loop
    ("quarantine", refused, suspects)                ("begin", PhotoInWork), ("end", its number)
    ("drain",)  answer, but ask for no more          ("failed", why)                the model cannot be loaded
    ("stop",)   finish what is in work, and end      ("metrics",)                   asks for those of all workers
                                                     ("received",)                  a connection, still unread
    ("metrics", {worker: text})

When the supervisor is gone the worker ends as if it were told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import logging
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from handmesh.errors import HandMeshError
from handmesh_server import logs
from handmesh_server.server import Server, prepare_process, server_config
from handmesh_server.service import HandService
from handmesh_server.supervisor import Report, Setup

logger = logging.getLogger(__name__)

_TICKS_PER_REPORT = 5  # of uvicorn's, ten a second


class _Channel:
    """The supervisor's end of the line, for all threads."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def tell(self, message: tuple[Any, ...]) -> None:
        with self._lock, contextlib.suppress(OSError):  # it is gone: that is noticed where it is read
            self.connection.send(message)


class WorkerServer(Server):
    """A server without a door of its own."""

    def __init__(
        self, config: uvicorn.Config, service: HandService, channel: _Channel, handover: socket.socket, alone: bool
    ) -> None:
        super().__init__(config, service, lambda _: None)
        self._channel, self._handover, self._alone = channel, handover, alone
        self._received = 0
        self._connecting: set[asyncio.Task[Any]] = set()
        self._metrics: asyncio.Future[dict[int, bytes]] | None = None
        if not alone:
            service.metrics_of_all = self._ask_for_metrics

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(uvicorn.config.STARTUP_FAILURE)
        self.servers = []
        loop = asyncio.get_running_loop()
        self._handover.setblocking(False)
        loop.add_reader(self._handover.fileno(), self._take_connections)
        loop.add_reader(self._channel.connection.fileno(), self._listen_to_supervisor)
        self.started = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Told by somebody else than the supervisor, who will notice."""
        self._end()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_REPORT == 0:
            self._report()
        return await super().on_tick(counter)

    def _report(self) -> None:
        state = self._service.state
        metrics = b"" if self._alone else self._service.metrics.text()
        connections = len(self.server_state.connections)
        self._channel.tell(("alive", Report(state, connections, self._received, metrics)))

    def _take_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                content, descriptors, _, _ = socket.recv_fds(self._handover, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            if not content:  # the supervisor is gone
                loop.remove_reader(self._handover.fileno())
                return
            self._received += 1
            self._channel.tell(("received",))
            for descriptor in descriptors:  # one; none where the system gives this process no more files
                connection = socket.socket(fileno=descriptor)
                connection.setblocking(False)
                task = loop.create_task(self._welcome(connection))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:  # the client was faster
            connection.close()

    def _listen_to_supervisor(self) -> None:
        try:
            while self._channel.connection.poll():
                self._obey(*self._channel.connection.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._channel.connection.fileno())
            logger.error("the supervisor is gone: finishing")
            self._end()

    def _obey(self, order: str, *arguments: Any) -> None:
        if order == "quarantine":
            self._service.quarantine.refused, self._service.quarantine.suspects = arguments
        elif order == "drain":
            self._service.leave()
        elif order == "stop":
            self._end()
        elif order == "metrics" and self._metrics is not None and not self._metrics.done():
            self._metrics.set_result(arguments[0])

    def _end(self) -> None:
        self._take_connections()  # those that were handed over before
        self._service.drain()
        self._report()
        self.should_exit = True

    async def _ask_for_metrics(self) -> dict[int, bytes]:
        if self._metrics is None or self._metrics.done():
            self._metrics = asyncio.get_running_loop().create_future()
            self._report()
            self._channel.tell(("metrics",))
        return await asyncio.wait_for(asyncio.shield(self._metrics), 5)


def main() -> None:
    """Called by the supervisor, with three file descriptors as arguments."""
    line, handover, crashes = map(int, sys.argv[1:])
    faulthandler.enable(crashes)  # says which thread it was
    channel = _Channel(Connection(line))
    setup: Setup = channel.connection.recv()
    settings = setup.settings
    logs.configure(settings.log_level)
    prepare_process()
    module, _, name = setup.application.partition(":")
    app = getattr(importlib.import_module(module), name)(settings)
    service: HandService = app.state.service
    service.quarantine.tell = channel.tell
    service.quarantine.refused, service.quarantine.suspects = setup.refused, setup.suspects
    server = WorkerServer(
        server_config(settings, app), service, channel, socket.socket(fileno=handover), alone=settings.workers == 1
    )
    service.on_failure = lambda: setattr(server, "should_exit", True)
    server.run()
    if service.failure is not None:
        ours = isinstance(service.failure, HandMeshError)
        channel.tell(("failed", str(service.failure) if ours else f"The model cannot be loaded: {service.failure}"))
        sys.exit(1)
