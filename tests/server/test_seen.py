"""What operators see of a request: its line in the log, and its traces and metrics at an OpenTelemetry collector."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from handmesh_server.logs import JsonFormatter
from server_harness import photo, running, settings, talk_to, wait_until


def test_the_log_has_the_fate_of_every_request(caplog):
    caplog.set_level(logging.INFO, logger="handmesh_server.access")
    with running(settings()) as server:
        expected = {
            "one": (200, {"hands": 1}),
            "batch": (200, {"hands": 2}),
            "no-image": (415, {"reason": "unsupported_image"}),
            "bad-query": (422, {"reason": "invalid_query"}),
            "long": (431, {"reason": "headers_too_large"}),
        }
        server.client.post("/v1/hands", content=photo(), headers={"X-Request-ID": "one"})
        files = [("image", (f"{number}.png", image)) for number, image in enumerate((photo(), b"text", photo()))]
        server.client.post("/v1/batches", files=files, headers={"X-Request-ID": "batch"})
        server.client.post("/v1/hands", content=b"text", headers={"X-Request-ID": "no-image"})
        server.client.post("/v1/hands?x=1", content=photo(), headers={"X-Request-ID": "bad-query"})
        server.client.get("/", headers={"X-Request-ID": "long", "X": "x" * 17_000})
        wait_until(lambda: len(lines_of(caplog)) == len(expected))
    lines = lines_of(caplog)
    for request_id, (status, fate) in expected.items():
        line = lines[request_id]
        assert line["status"] == status
        assert {name: line[name] for name in ("hands", "reason") if name in line} == fate
    assert set(lines["one"]["timing"]) == {"read", "decode", "queue", "model", "predict", "encode"}
    assert "timing" not in lines["long"]


def test_the_log_names_the_host_that_was_called(caplog):
    """Its name was given to the log, which left it out: nobody saw what to allow, or who tried."""
    caplog.set_level(logging.INFO, logger="handmesh_server.access")
    with running() as server:
        server.client.get("/livez", headers={"Host": "evil.example"})
    (line,) = lines_of(caplog).values()
    assert (line["host"], line["status"], line["reason"]) == ("evil.example", 403, "forbidden_host")


def lines_of(caplog) -> dict[str, dict]:
    """By request id, as they are written."""
    formatter = JsonFormatter()
    found = [json.loads(formatter.format(one)) for one in caplog.records if one.name == "handmesh_server.access"]
    return {line["request_id"]: line for line in found}


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """Its address, and what was posted to it, by path."""
    posted: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            posted.setdefault(self.path, []).append(gzip.decompress(content) if zipped else content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()
        thread.join()


def test_a_collector_gets_stages_and_counts():
    """By the server as it is deployed: a process, told by OpenTelemetry's own variables."""
    pytest.importorskip("opentelemetry.sdk", reason='needs: pip install "handmesh[otel]"')
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with collector() as (address, posted):
        environment = os.environ | {
            "HANDMESH_PORT": "0",
            "HANDMESH_DRAIN_SECONDS": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_SERVICE_NAME": "handmesh",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-m", "handmesh_server"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            url = next(_addresses(process.stderr))
            with talk_to(url) as client:
                wait_until(lambda: client.get("/readyz").status_code == 200)
                parent = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
                assert client.post("/v1/hands?box=8,8,90,90", content=photo(), headers=parent).status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)  # what is not sent yet is sent at the end
            process.communicate(timeout=90)
        assert process.returncode == 0
    spans = {}
    for body in posted["/v1/traces"]:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            assert names["service.name"] == "handmesh"
            spans |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
    (request,) = [span for name, span in spans.items() if name.startswith("POST")]
    assert request.trace_id.hex() == trace_id
    assert not any("readyz" in name for name in spans)
    for stage in ("read", "decode", "predict", "encode"):
        assert spans[stage].parent_span_id == request.span_id
        assert request.start_time_unix_nano <= spans[stage].start_time_unix_nano <= spans[stage].end_time_unix_nano
        assert spans[stage].end_time_unix_nano <= request.end_time_unix_nano + 1_000_000
    assert spans["decode"].end_time_unix_nano <= spans["predict"].start_time_unix_nano
    metrics = {}
    for body in posted["/v1/metrics"]:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            metrics |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
    assert {"http.server.request.duration", "handmesh.ready", "handmesh.jobs.bytes"} <= set(metrics)
    assert sum(point.as_double for point in metrics["handmesh.hands"].sum.data_points) == 1
    stages = {
        point.attributes[0].value.string_value: point.count
        for point in metrics["handmesh.stage.duration"].histogram.data_points
    }
    assert stages["model"] == 1
    assert set(posted) == {"/v1/traces", "/v1/metrics"}  # no logs: they have what was posted


def _addresses(stderr) -> Iterator[str]:
    for line in stderr:
        message = json.loads(line)["message"]
        if "http://" in message:
            yield message[message.index("http://") :].split()[0].rstrip("/")


def test_without_a_collector_nothing_is_sent(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    from opentelemetry import metrics, trace

    with running(settings()) as server:
        assert server.client.post("/v1/hands", content=photo()).status_code == 200
    assert "sdk" not in type(trace.get_tracer_provider()).__module__
    assert "sdk" not in type(metrics.get_meter_provider()).__module__
