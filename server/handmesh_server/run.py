"""Running the service: checks before it starts, logs, and what this process shares with others."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from handmesh.errors import ConfigError, HandMeshError
from handmesh_server import logs
from handmesh_server.app import create_app
from handmesh_server.server import make_server
from handmesh_server.service import HandService
from handmesh_server.settings import PREFIX, Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError for an unsafe exposure, and what loading the model raises.

    `announce` gets the address when photos are accepted, for people; the log has it when the server listens.
    """
    settings = settings.with_token_read()
    settings.check_exposure()
    logs.configure(settings.log_level)
    _warn_about_misspelt_variables()
    _allow_many_files()
    _share_cpus()
    app = create_app(settings)
    service: HandService = app.state.service
    server = make_server(settings, app, announce or (lambda _: None))
    service.on_failure = lambda: setattr(server, "should_exit", True)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say so; the log has the system's words
        raise ConfigError(
            f"Cannot listen on {settings.host}, port {settings.port}: is another program using it? Choose another "
            f"with --port ({PREFIX}PORT)."
        ) from None
    if service.failure is not None:
        if isinstance(service.failure, HandMeshError):
            raise service.failure
        raise HandMeshError(f"The model cannot be loaded: {service.failure}") from service.failure


# Variables of handmesh itself, which the server obeys as everything does.
_OTHERS: Final = ("cache_dir", "mano_dir", "weights_dir")


def _warn_about_misspelt_variables() -> None:
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, *_OTHERS)}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
    if unknown:
        logger.warning("these variables are no settings of the server: %s", ", ".join(sorted(unknown)))


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
