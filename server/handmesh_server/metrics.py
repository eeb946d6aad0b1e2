"""What the service counts, in Prometheus's terms. One registry per application: nothing is global."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families

from handmesh_server.admission import RequestContext
from handmesh_server.telemetry import Telemetry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGES = ("read", "decode", "queue", "model", "predict", "encode")


class Metrics:
    """Counters and histograms, and `text()` for /metrics."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "handmesh_requests", "Answered requests.", ("method", "route", "status"), registry=registry
        )
        self.latency = Histogram(
            "handmesh_request_seconds",
            "From the request's headers to the end of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "handmesh_stage_seconds",
            "Parts of a request: read (the upload), decode, queue and model (all passes), predict (crops and the rest "
            "of Predictor, without queue and model), encode.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_sizes = Histogram(
            "handmesh_batch_size", "Crops per call of the engine.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.batch_seconds = Histogram(
            "handmesh_batch_seconds", "Time per call of the engine.", buckets=_SECONDS, registry=registry
        )
        self.hands = Counter("handmesh_hands", "Hands in answers.", registry=registry)
        self.rejected = Counter(
            "handmesh_rejected",
            "Requests that were not answered with hands, by reason.",
            ("reason",),
            registry=registry,
        )
        self.frames = Counter(
            "handmesh_frames",
            "Frames of streams: answered, skipped (a newer one came before its turn), or refused.",
            ("outcome",),
            registry=registry,
        )
        self.streams = Gauge("handmesh_streams", "Open streams.", registry=registry)
        self.ready = Gauge("handmesh_ready", "1 when requests are accepted.", registry=registry)
        self.queue_depth = Gauge("handmesh_queue_depth", "Crops waiting for the model.", registry=registry)
        self.in_flight = Gauge("handmesh_in_flight", "Hands waiting or in work.", registry=registry)
        self.memory = Gauge("handmesh_reserved_bytes", "Set aside for uploads and pixels.", registry=registry)
        self.model = Info("handmesh_model", "Which model answers.", registry=registry)
        self.jobs = Gauge("handmesh_jobs", "Clips that wait or are in work.", ("status",), registry=registry)
        self.jobs_bytes = Gauge("handmesh_jobs_bytes", "Of clips and results on the disk.", registry=registry)
        self.jobs_ended = Counter(
            "handmesh_jobs_ended",
            "Clips that this process worked on, by how they ended.",
            ("status",),
            registry=registry,
        )
        for stage in _STAGES:
            self.stages.labels(stage)
        for outcome in ("answered", "skipped", "refused"):
            self.frames.labels(outcome)
        self._telemetry = Telemetry(registry)

    def on_batch(self, crops: int, seconds: float) -> None:
        self.batch_sizes.observe(crops)
        self.batch_seconds.observe(seconds)

    @contextmanager
    def stage(self, name: str, context: RequestContext) -> Iterator[None]:
        """Measure a part of a request, also for the request's own Server-Timing."""
        started = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            context.add(name, ended - started)
            context.stages.append((name, started, ended))

    def finish(self, context: RequestContext) -> None:
        """The request was answered."""
        self._telemetry.finish(context)
        for name, seconds in context.seconds.items():
            self.stages.labels(name).observe(seconds)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Read the gauge from its source whenever somebody asks."""
        gauge.set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def merged(texts: Mapping[int, bytes]) -> bytes:
    """The metrics of several processes as one text: each sample says by the label `worker` whose it is."""
    families: dict[str, Metric] = {}
    for worker, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [
                sample._replace(labels={**sample.labels, "worker": str(worker)}) for sample in family.samples
            ]
    return generate_latest(_Collected(families.values()))


class _Collected:
    """As much of a registry as is asked for."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
