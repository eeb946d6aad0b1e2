"""Logs as one JSON object per line, for collectors. What was posted is never in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

# `logger.info(..., extra={...})` fields that go into the line.
FIELDS: Final = (
    "request_id",
    "method",
    "path",
    "host",
    "status",
    "seconds",
    "client",
    "token",
    "hands",
    "reason",
    "timing",
    "job",
)


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message, and the FIELDS that a record has."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def configure(level: str) -> None:
    """Everything that this process logs goes to standard error, as JSON. For entry points."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for name in ("handmesh", "handmesh_server", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    # "Invalid HTTP request received" for every port scanner.
    logging.getLogger("uvicorn.error").setLevel(max(logging.INFO, logging.getLevelName(level.upper())))
