"""Running the service: checks before it starts, logs, and what this process shares with others."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Final

from handmesh.errors import ConfigError, HandMeshError
from handmesh_server import logs
from handmesh_server.settings import PREFIX, Settings, cannot_listen

logger = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError for an unsafe exposure, and what loading the model raises.

    `announce` gets the address when photos are accepted, for people; the log has it when the server listens.
    """
    settings = settings.checked()
    settings.check_exposure()
    logs.configure(settings.log_level)
    _warn_about_misspelt_variables()
    if sys.platform == "win32":  # where connections cannot be handed to other processes
        _serve_alone(settings, announce or (lambda _: None))
    else:
        from handmesh_server.supervisor import Supervisor

        Supervisor(settings, announce or (lambda _: None)).run()


def _serve_alone(settings: Settings, announce: Callable[[str], None]) -> None:
    """In this process, without a supervisor."""
    from handmesh_server.app import create_app
    from handmesh_server.server import make_server, prepare_process

    if settings.workers > 1:
        raise ConfigError(f"{settings.workers} workers were asked for; on Windows there is one.")
    prepare_process()
    app = create_app(settings)
    server = make_server(settings, app, announce)
    app.state.service.on_failure = lambda: setattr(server, "should_exit", True)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say so; the log has the system's words
        raise cannot_listen(settings) from None
    failure = app.state.service.failure
    if failure is not None:
        if isinstance(failure, HandMeshError):
            raise failure
        raise HandMeshError(f"The model cannot be loaded: {failure}") from failure


# Variables of handmesh itself, which the server obeys as everything does.
_OTHERS: Final = ("cache_dir", "mano_dir", "weights_dir")


def _warn_about_misspelt_variables() -> None:
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, *_OTHERS)}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
    if unknown:
        logger.warning("these variables are no settings of the server: %s", ", ".join(sorted(unknown)))
