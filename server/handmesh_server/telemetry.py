"""Traces and metrics for OpenTelemetry, where the extra is installed and OTEL_EXPORTER_OTLP_ENDPOINT names a collector.

FastAPI makes a span of each request and counts them; here are its stages, and what /metrics has. Without a collector
all of this is a few calls that do nothing, and nothing is ever sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry

from handmesh_server.admission import RequestContext

try:
    from opentelemetry import metrics, trace
except ImportError:  # of a FastAPI that does not bring it
    metrics = trace = None  # type: ignore[assignment]

_NAME: Final = "handmesh"
_QUIET: Final = ("/livez", "/readyz", "/metrics", "/v2/")

# For `FastAPI(telemetry=...)`: exporters as OTEL_... variables say; no logs, for those have what was posted.
SETTINGS: Final[dict[str, Any]] = {
    "auto_configure": True,
    "logs": False,
    "operation_spans": False,
    "exclude": lambda scope: scope.get("path", "").startswith(_QUIET),
}


class Telemetry:
    """One application's part of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """`registry`: its counters and gauges are told, too."""
        if metrics is None:
            return
        meter = metrics.get_meter(_NAME)
        self._stages = meter.create_histogram("handmesh.stage.duration", "s", "Parts of a request.")
        for family in registry.collect():
            if not family.name.startswith(_NAME):
                continue
            name = family.name.replace("_", ".")
            observe = [_Observed(registry, family.name)]
            if family.type == "counter":
                meter.create_observable_counter(name, observe, description=family.documentation)
            elif family.type == "gauge":
                meter.create_observable_gauge(name, observe, description=family.documentation)

    def finish(self, context: RequestContext) -> None:
        """Of a request that was answered: its stages as spans of the span that is current, and as measurements."""
        if metrics is None:
            return
        for stage, seconds in context.seconds.items():
            self._stages.record(seconds, {"stage": stage})
        if not trace.get_current_span().is_recording():
            return
        tracer = trace.get_tracer(_NAME)
        now, now_ns = time.monotonic(), time.time_ns()
        for stage, start, end in context.stages:
            start_ns, end_ns = (now_ns + round(1e9 * (moment - now)) for moment in (start, end))
            span = tracer.start_span(stage, start_time=start_ns)
            if stage == "predict":
                for part in ("queue", "model"):
                    span.set_attribute(f"handmesh.{part}.seconds", context.seconds.get(part, 0.0))
            span.end(end_ns)


class _Observed:
    """What a metric is when OpenTelemetry asks."""

    def __init__(self, registry: CollectorRegistry, name: str) -> None:
        self._registry, self._name = registry, name

    def __call__(self, _: Any) -> Iterable[Any]:
        for family in self._registry.collect():
            if family.name == self._name:
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        yield metrics.Observation(sample.value, dict(sample.labels))
