"""The server against `handmesh predict` on a folder of the same photos, and what it loses when things go wrong.

    python benchmarks/serving.py --out serving.json              # photos/s at 1, 4, 16 and 64 connections
    python benchmarks/serving.py --busy 4                        # the same beside four processes that compute
    python benchmarks/serving.py --phone                         # processor time of a 12-megapixel JPEG
    python benchmarks/serving.py --soak 20000 --workers 2        # mixed requests, hostile ones, kill -9
    python benchmarks/serving.py --drain 20                      # SIGTERM under keep-alive clients, so many times

Rounds alternate between the folder (in this process, as the command line does it: side by side, each photo on one
thread, JSON written) and the server (processes of its own, on loopback, at default settings), so that whatever else the
machine does falls on all. Processor time is what the kernel counted for the server's processes; on a busy machine
believe it before the clock. Clients are threads of this process and take processor time too. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import handmesh
from handmesh.cli.predict import side_by_side
from handmesh.files.image import encode_image, open_photo, read_image
from handmesh.predict import Predictor, load_predictor, save_hands
from handmesh.system.cpus import default_threads

CONNECTIONS = (1, 4, 16, 64)


def sample() -> np.ndarray:
    """A 640 x 480 picture: a sample of the package, repeated."""
    samples = sorted((Path(handmesh.__file__).parent / "assets" / "samples").glob("*.jpg"))
    return np.ascontiguousarray(np.tile(read_image(samples[0]), (2, 2, 1))[:480, :640])


def phone_photo() -> bytes:
    """4032 x 3024 pixels, turned by EXIF as phones do it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(sample()).resize((4032, 3024), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


class Server:
    """`python -m handmesh_server` and its workers."""

    def __init__(self, **settings: object) -> None:
        environment = os.environ | {f"HANDMESH_{name.upper()}": str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "handmesh_server"],
            env=environment | {"HANDMESH_PORT": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.port, ready, self.log = 0, 0, []
        for line in self.process.stderr:
            self.log.append(line)
            if "running on" in line:
                self.port = int(line.split("127.0.0.1:")[1].split(" ")[0])
            ready += "is ready, after" in line
            if ready == int(str(settings.get("workers", 1))):
                break
        else:
            raise RuntimeError("".join(self.log))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log += [line for line in self.process.stderr if '"level": "info"' not in line]

    def workers(self) -> list[int]:
        """Process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(one) for one in children]

    def cpu_seconds(self) -> float:
        """Of the supervisor, its workers, and those workers that have ended."""
        ticks = 0
        for pid in (self.process.pid, *self.workers()):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                own = (11, 12, 13, 14) if pid == self.process.pid else (11, 12)
                ticks += sum(int(fields[field]) for field in own)
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        pages = 0
        for pid in self.workers():
            with contextlib.suppress(OSError, IndexError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def started(arguments: argparse.Namespace) -> Server:
    return Server(workers=arguments.workers, **({"model": arguments.model} if arguments.model else {}))


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection.request("POST", "/v1/hands", body)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def folder_round(predictor: Predictor, folder: Path, seconds: float) -> tuple[float, float]:
    """(photos per second, processor seconds per photo) of `handmesh predict FOLDER --format json`."""
    until = time.perf_counter() + seconds
    out = folder / "out.json"

    def one(path: Path) -> None:
        if time.perf_counter() < until:
            save_hands(out.with_stem(f"out{threading.get_ident()}"), predictor(open_photo(path)))
            done.append(path)

    photos, done = sorted(folder.glob("*.jpg")), list[Path]()
    used, started = time.process_time(), time.perf_counter()
    for _ in side_by_side(one, photos * 1000, default_threads()):
        if time.perf_counter() >= until:
            break
    return len(done) / (time.perf_counter() - started), (time.process_time() - used) / len(done)


def server_round(server: Server, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Photos per second, latencies, processor seconds of each, and the shares that were answered 429 or otherwise."""
    latencies: list[float] = []
    refused: Counter[int] = Counter()
    until = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while time.perf_counter() < until:
            started = time.perf_counter()
            status, _, headers = ask(connection, body)
            if status == 200:
                latencies.append(time.perf_counter() - started)
            else:
                refused[status] += 1
                time.sleep(min(1.0, float(headers.get("Retry-After", 1))))
        connection.close()

    used, started = server.cpu_seconds(), time.perf_counter()
    run_threads(client, connections)
    count = len(latencies)
    return {
        "photos_per_s": count / (time.perf_counter() - started),
        "cpu_s": (server.cpu_seconds() - used) / count,
        "p50_s": statistics.median(latencies),
        "p99_s": sorted(latencies)[max(0, round(0.99 * count) - 1)],
        "refused": refused[429] / (count + sum(refused.values())),
        "failed": (sum(refused.values()) - refused[429]) / (count + sum(refused.values())),
    }


def run_threads(work: Any, count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows for a table: connections, and the server over the folder."""
    body = phone_photo() if arguments.phone else encode_image(sample(), "jpeg", quality=90)
    connections = (1,) if arguments.phone else arguments.connections
    served: dict[int, list[dict[str, float]]] = {count: [] for count in connections}
    with tempfile.TemporaryDirectory() as name:
        for number in range(8):
            Path(name, f"{number}.jpg").write_bytes(body)
        predictor = load_predictor(arguments.model, threads=1)
        folder_round(predictor, Path(name), 0.5)
        server = started(arguments)
        try:
            server_round(server, body, 2, 1.0)
            folder = []
            with busy(arguments.busy):
                for _ in range(arguments.rounds):
                    for count in connections:
                        folder.append(folder_round(predictor, Path(name), arguments.seconds))
                        served[count].append(
                            server_round(server, body, count, arguments.seconds)
                            | {"folder_per_s": folder[-1][0], "folder_cpu_s": folder[-1][1]}
                        )
        finally:
            server.end()
    rows = []
    for count, rounds in served.items():
        row = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        row["rate_over_folder"] = statistics.median(one["photos_per_s"] / one["folder_per_s"] for one in rounds)
        row["cpu_over_folder"] = statistics.median(one["cpu_s"] / one["folder_cpu_s"] for one in rounds)
        rows.append({"connections": count, **row})
    print(
        "| connections | photos/s, of the folder | ratio | processor ms, over the folder's | p50, p99 ms | 429, other |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['connections']} | {row['photos_per_s']:.1f}, {row['folder_per_s']:.1f} "
            f"| {row['rate_over_folder']:.2f} | {1000 * row['cpu_s']:.0f}, {row['cpu_over_folder']:.2f} "
            f"| {1000 * row['p50_s']:.0f}, {1000 * row['p99_s']:.0f} | {row['refused']:.1%}, {row['failed']:.1%} |"
        )
    return {"rows": rows, "threads": default_threads(), "workers": arguments.workers, "busy": arguments.busy}


HOSTILE: dict[str, bytes] = {
    "text": b"no photo",
    "empty": b"",
    "cut off": b"\xff\xd8\xff\xe0" + bytes(200),
    "bomb": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x4e\x20\x00\x00\x27\x10\x01\x00\x00\x00\x00" + bytes(100),
    "fill bytes": b"\xff\xd8" + b"\xff" * 3_000_000,
}


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mixed requests with faults. What ended without an answer has to be a killed worker's."""
    small = encode_image(sample(), "jpeg", quality=90)
    phone = phone_photo()
    server = started(arguments)
    outcomes: Counter[str] = Counter()
    unexplained: list[str] = []
    kills: list[float] = []
    memory: list[float] = []
    left = iter(range(arguments.soak))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        dice = random.Random(threading.get_ident())
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            if number % max(1, arguments.soak // 20) == 0:
                memory.append(server.memory_mb())
            kind = dice.choices(["small", "phone", "hostile", "cut"], [80, 4, 10, 6])[0]
            if kind == "cut":
                cut_connection(server.port, small, dice)
                outcomes["cut by the client"] += 1
                continue
            body = small if kind == "small" else phone if kind == "phone" else dice.choice(list(HOSTILE.values()))
            started = time.monotonic()
            try:
                status, _, headers = ask(connection, body)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                ended = time.monotonic()
                explained = any(started - 1 <= kill <= ended and ended - kill < 1.5 for kill in kills)
                outcomes["lost with a killed worker" if explained else "lost"] += 1
                if not explained:
                    unexplained.append(f"{kind}: {error!r} after {ended - started:.2f} s")
                continue
            outcomes[f"{'hostile' if kind == 'hostile' else 'honest'} {status}"] += 1
            if status in (429, 503):
                time.sleep(min(1.0, float(headers.get("Retry-After", 1))))

    def killer() -> None:
        while not done.wait(arguments.kill_seconds):
            workers = server.workers()
            if len(workers) == arguments.workers:
                kills.append(time.monotonic())
                with contextlib.suppress(OSError):
                    os.kill(random.choice(workers), signal.SIGKILL)

    done = threading.Event()
    killing = threading.Thread(target=killer)
    killing.start()
    run_threads(client, 8)
    done.set()
    killing.join()
    code = server.end()
    print(f"{arguments.soak} requests, {len(kills)} times kill -9, exit code {code}")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome}: {count}")
    print("  memory of the workers, MB:", ", ".join(f"{one:.0f}" for one in memory))
    for line in unexplained[:10]:
        print("  unexplained:", line)
    return {"outcomes": outcomes, "kills": len(kills), "memory_mb": memory, "unexplained": unexplained}


def cut_connection(port: int, body: bytes, dice: random.Random) -> None:
    head = f"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall((head + body)[: dice.randint(1, len(head) + len(body))])


def drain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Eight keep-alive clients that ask all the time. Each request that found the server has to be answered."""
    body = encode_image(sample(), "jpeg", quality=90)
    lost: list[str] = []
    answered: Counter[int] = Counter()
    for _ in range(arguments.drain):
        server = started(arguments)

        def client(port: int = server.port) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while True:
                try:
                    answered[ask(connection, body)[0]] += 1
                except ConnectionRefusedError:  # the door is closed
                    return
                except (OSError, http.client.HTTPException) as error:
                    lost.append(repr(error))
                    return

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1 + random.random())
        code = server.end()
        for thread in threads:
            thread.join()
        if code:
            lost.append(f"exit code {code}")
    print(f"{arguments.drain} times SIGTERM: {dict(answered)} answered, {len(lost)} lost", *lost[:10], sep="\n  ")
    return {"answered": answered, "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model file; without it the bundled one")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part of a round")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute beside it")
    parser.add_argument("--phone", action="store_true", help="one connection with 12-megapixel photos")
    parser.add_argument("--soak", type=int, metavar="N", help="so many mixed requests with faults, instead of rates")
    parser.add_argument("--kill-seconds", type=float, default=20.0, help="between two times kill -9 of the soak")
    parser.add_argument("--drain", type=int, metavar="N", help="so many times SIGTERM under load, instead of rates")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(machine)
    result = soak(arguments) if arguments.soak else drain(arguments) if arguments.drain else rates(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine, **result}, indent=2))


if __name__ == "__main__":
    main()
