"""The server's throughput and latency against the bare engine and the bare Predictor, in one run, as ratios.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --out serving.json

Rounds alternate between the bare engine and the Predictor (in this process, one photo at a time) and the server (a
process of its own, on loopback) with 1, 8 and 64 connections, so that whatever else the machine does falls on all. One
photo is `--passes` crops. Processor time is what the kernel counted for the server's process; on a busy machine believe
it before the clock. Clients are threads of this process and take CPU time too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from handmesh.files.image import encode_image, read_image
from handmesh.predict import Predictor
from handmesh.runtime.engine import Engine, open_engine

CONNECTIONS = (1, 8, 64)


def random_model(directory: Path, resolution: int) -> Path:
    """A T8 that was never trained: as fast as any other."""
    import torch

    from handmesh.config import ModelConfig
    from handmesh.hand import builtin_hand
    from handmesh.hand.layer import HandModel
    from handmesh.model.checkpoint import save_model
    from handmesh.model.network import HandMeshNet

    torch.manual_seed(0)
    path = directory / "random_t8.safetensors"
    config = ModelConfig(backbone="fastvit_t8", resolution=resolution)
    save_model(path, HandMeshNet(config, HandModel(builtin_hand())), training={"steps": 0})
    return path


def photo_640() -> bytes:
    """A 640 x 480 JPEG: a sample of the package, repeated."""
    import handmesh

    samples = sorted((Path(handmesh.__file__).parent / "assets" / "samples").glob("*.jpg"))
    image = read_image(samples[0])
    tiled = np.tile(image, (2, 2, 1))[:480, :640]
    return encode_image(np.ascontiguousarray(tiled), "jpeg", quality=90)


def engine_round(engine: Engine, seconds: float) -> tuple[float, float]:
    """(crops per second, CPU seconds per crop) of the bare engine."""
    crops = np.random.default_rng(0).integers(0, 255, (1, engine.resolution, engine.resolution, 3), np.uint8)
    engine(crops)
    count, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        engine(crops)
        count += 1
    return count / (time.perf_counter() - started), (time.process_time() - used) / count


def predictor_round(predictor: Predictor, body: bytes, seconds: float) -> tuple[float, float]:
    """(photos per second, CPU seconds per photo) of a loop over decode, crops and passes, without a server."""
    predictor(body)
    count, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        predictor(body)
        count += 1
    return count / (time.perf_counter() - started), (time.process_time() - used) / count


def server_round(port: int, pid: int, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second, latencies, CPU seconds per request, and where Server-Timing says it went."""
    latencies: list[float] = []
    stages: list[dict[str, float]] = []
    lock = threading.Lock()
    until = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.perf_counter() < until:
            started = time.perf_counter()
            connection.request("POST", "/v1/hands", body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            taken = time.perf_counter() - started
            timing = dict(part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))
            with lock:
                latencies.append(taken)
                stages.append({name: float(value) / 1000 for name, value in timing.items()})
        connection.close()

    used, started = cpu_seconds(pid), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = len(latencies)
    mean = {name: statistics.fmean(one[name] for one in stages) for name in stages[0]}
    return {
        "requests_per_s": count / (time.perf_counter() - started),
        "cpu_s": (cpu_seconds(pid) - used) / count,
        "p50_s": statistics.median(latencies),
        "p99_s": sorted(latencies)[max(0, round(0.99 * count) - 1)],
        **{f"stage_{name}_s": value for name, value in mean.items()},
    }


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; without it a T8 with random weights")
    parser.add_argument("--resolution", type=int, default=224, help="of the model with random weights")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part of a round")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or random_model(Path(directory), arguments.resolution)
        settings = {
            "MODEL": model,
            "PORT": 0,
            "THREADS": arguments.threads,
            "PASSES": arguments.passes,
            "DEADLINE_SECONDS": 120,
            "DRAIN_SECONDS": 0,
        }
        environment = os.environ | {f"HANDMESH_{name}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "handmesh_server"], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if "running on" in line:
                port = int(line.split("127.0.0.1:")[1].split(" ")[0])
            if "ready in" in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            engine = open_engine(model, threads=arguments.threads)
            body = photo_640()
            server_round(port, process.pid, body, 2, 1.0)
            predictor = Predictor(engine, passes=arguments.passes)
            bare: list[tuple[float, float]] = []
            looped: list[tuple[float, float]] = []
            served: dict[int, list[dict[str, float]]] = {count: [] for count in CONNECTIONS}
            for _ in range(arguments.rounds):
                for count in CONNECTIONS:
                    bare.append(engine_round(engine, arguments.seconds / 2))
                    looped.append(predictor_round(predictor, body, arguments.seconds / 2))
                    served[count].append(server_round(port, process.pid, body, count, arguments.seconds))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    crops_per_s = statistics.median(rate for rate, _ in bare)
    cpu_s = statistics.median(used for _, used in bare)
    photos_per_s = statistics.median(rate for rate, _ in looped)
    photo_cpu_s = statistics.median(used for _, used in looped)
    passes = arguments.passes
    rows = []
    for count, rounds in served.items():
        row = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        stage = {name[6:-2]: value for name, value in row.items() if name.startswith("stage_")}
        working = sum(value for name, value in stage.items() if name != "queue")
        rows.append(
            {
                "connections": count,
                "throughput_over_engine": row["requests_per_s"] * passes / crops_per_s,
                "throughput_over_predictor": row["requests_per_s"] / photos_per_s,
                "cpu_engine_over_server": cpu_s * passes / row["cpu_s"],
                "cpu_predictor_over_server": photo_cpu_s / row["cpu_s"],
                "p50_over_engine": row["p50_s"] * crops_per_s / passes,
                "p99_over_engine": row["p99_s"] * crops_per_s / passes,
                "not_model_share": 1 - (stage["model"] + stage["predict"]) / working,
                "requests_per_s": row["requests_per_s"],
                "p50_ms": 1000 * row["p50_s"],
                "p99_ms": 1000 * row["p99_s"],
                **{f"{name}_ms": 1000 * value for name, value in stage.items()},
            }
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    result = {
        "machine": machine,
        "engine": engine.name,
        "model": model.name,
        "passes": passes,
        "engine_ms_per_crop": 1000 / crops_per_s,
        "engine_cpu_ms_per_crop": 1000 * cpu_s,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2))
    print(f"{machine}; {engine.name}; {model.name}, {passes} passes")
    print(f"engine: {1000 * passes / crops_per_s:.1f} ms per photo, {1000 * cpu_s * passes:.1f} ms of CPU time")
    print(f"predictor: {1000 / photos_per_s:.1f} ms per photo, {1000 * photo_cpu_s:.1f} ms of CPU time\n")
    print("| connections | photos/s over engine, predictor | CPU time of engine, predictor / server's ", end="")
    print("| p50, p99 over engine | HTTP, decode, encode |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['connections']} | {row['throughput_over_engine']:.2f}, {row['throughput_over_predictor']:.2f} "
            f"| {row['cpu_engine_over_server']:.2f}, {row['cpu_predictor_over_server']:.2f} "
            f"| {row['p50_over_engine']:.2f}, {row['p99_over_engine']:.2f} | {row['not_model_share']:.1%} |"
        )


if __name__ == "__main__":
    main()
