"""The same work through other networks:  OMP_NUM_THREADS=1 python benchmarks/peers.py [--batch 1] [--json FILE]

Each peer is a backbone that hand-mesh methods use, with random weights, on crops of 224 px; it takes turns with our
FastViT-MA36, reparameterized, without its hand model, so that like is compared with like. Peers are not dependencies of
ours: what is installed is measured, and for the rest the reason is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from handmesh.bench.timing import describe_machine, torch_threads
from handmesh.model.fastvit import build_backbone
from handmesh.model.network import to_device
from handmesh.runtime.timing import lead_in, time_in_turns

SIZE = 224
# name -> (package, how it is built there)
PEERS: dict[str, tuple[str, Callable[[Any], torch.nn.Module]]] = {
    "resnet18 (torchvision)": ("torchvision.models", lambda module: module.resnet18(weights=None)),
    "resnet50 (torchvision)": ("torchvision.models", lambda module: module.resnet50(weights=None)),
    "mobilenet_v3_large (torchvision)": ("torchvision.models", lambda module: module.mobilenet_v3_large(weights=None)),
    "fastvit_ma36 (timm)": ("timm", lambda module: module.create_model("fastvit_ma36", num_classes=0)),
    "hrnet_w48 (timm)": ("timm", lambda module: module.create_model("hrnet_w48", num_classes=0)),
    "hrnet_w64 (timm)": ("timm", lambda module: module.create_model("hrnet_w64", num_classes=0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = torch.randn(arguments.batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    networks = {"fastvit_ma36 (handmesh, reparameterized)": build_backbone("fastvit_ma36").eval().reparameterize()}
    for name, (package, build) in PEERS.items():
        try:
            module = __import__(package, fromlist=["*"])
            networks[name] = build(module).eval()
        # RuntimeError: torchvision beside a CPU-only torch has no operators of its own
        except (ImportError, RuntimeError) as error:
            print(f"skipped {name}: {type(error).__name__}: {str(error).splitlines()[0]}")

    def task(network: torch.nn.Module) -> Callable[[], torch.Tensor]:
        moved = to_device(network, torch.device("cpu"))

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return moved(images)

        return run

    clock = "cpu" if arguments.threads == 1 else "wall"
    with torch_threads(arguments.threads):
        tasks = {name: task(network) for name, network in networks.items()}
        lead_in_s = lead_in(arguments.threads)
        timings = time_in_turns(tasks, runs=arguments.runs, clock=clock, lead_in_s=lead_in_s)
    base = next(iter(timings.values())).median_ms
    rows = []
    for name, timing in timings.items():
        print(f"{name:34} {timing.median_ms:8.1f} ms  {timing.median_ms / base:.2f}")
        rows.append(
            {
                "model": name,
                "engine": "torch",
                "precision": "float32",
                "batch": arguments.batch,
                "threads": arguments.threads,
                "clock": clock,
                "network_ms": timing.median_ms,
                "p95_ms": timing.p95_ms,
            }
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
