"""Benchmarks: the clock counts what it says, the rows are complete, and no time is given for a wrong answer."""

import json
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from handmesh.bench.engines import bench_engines, cold_start
from handmesh.bench.timing import count_multiply_adds, count_parameters, torch_threads
from handmesh.cli import app
from handmesh.errors import ConfigError
from handmesh.model.bundled import bundled_model_path
from handmesh.model.fastvit import build_backbone
from handmesh.runtime.timing import time_in_turns


def test_tasks_take_turns_and_are_timed_apart(monkeypatch):
    """On a clock that only tasks move."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seconds = {"even": iter([9.0, 0.002] + [0.002] * 5), "uneven": iter([9.0, 9.0, 0.001, 0.005, 0.002, 0.004, 0.003])}

    def task(name):
        calls.append(name)
        now[0] += next(seconds[name])

    timings = time_in_turns({"even": lambda: task("even"), "uneven": lambda: task("uneven")}, runs=5, warm_up=2)
    assert calls == ["even"] * 2 + ["uneven"] * 2 + ["even", "uneven"] * 5
    even, uneven = timings["even"], timings["uneven"]
    assert (even.median_ms, even.min_ms, even.p95_ms) == pytest.approx((2, 2, 2))
    assert (uneven.median_ms, uneven.min_ms) == pytest.approx((3, 1))
    assert 4 < uneven.p95_ms <= 5
    assert even.runs == uneven.runs == 5


def test_a_turn_begins_with_untimed_runs(monkeypatch):
    """Its first runs are slow, as if the others' threads were still awake; they are not timed."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def task(name):
        first = not calls or calls[-1] != name
        calls.append(name)
        now[0] += 0.08 if first else 0.03

    timings = time_in_turns(
        {"one": lambda: task("one"), "other": lambda: task("other")}, runs=2, warm_up=0, lead_in_s=0.1
    )
    assert calls == (["one"] * 3 + ["other"] * 3) * 2  # 0.08 + 0.03 of lead-in, then the timed one
    assert timings["one"].median_ms == pytest.approx(30)


def test_processor_time_does_not_pass_while_others_work():
    waiting = {"waiting": lambda: time.sleep(0.02)}
    wall, processor = (time_in_turns(waiting, runs=3, clock=clock)["waiting"] for clock in ("wall", "cpu"))
    assert wall.min_ms >= 20
    assert processor.median_ms < 10


def test_multiply_adds_grow_with_the_area():
    """Every convolution's do; squeeze-and-excitation's, after pooling, do not."""
    backbone = build_backbone("fastvit_t8")
    pooled = 2 * backbone.channels * (backbone.channels // 16)
    assert count_multiply_adds(backbone, 128) - pooled == 4 * (count_multiply_adds(backbone, 64) - pooled)


def test_backbones_on_the_command_line(tmp_path):
    threads = torch.get_num_threads()
    arguments = "bench --backbones --names fastvit_t8 --engines torch-train-time,torch --size 64 --batch 2 --threads 1"
    run = CliRunner().invoke(app, [*arguments.split(), "--runs", "2", "--json", "--out", str(tmp_path / "bench.json")])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == json.loads((tmp_path / "bench.json").read_text())
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["machine"]["torch"] == torch.__version__
    trained, deployed = report["rows"]
    assert (trained["form"], deployed["form"]) == ("train-time", "reparameterized")
    assert deployed["parameters"] < trained["parameters"] == count_parameters(build_backbone("fastvit_t8"))
    assert deployed["multiply_adds"] < trained["multiply_adds"]


def test_engines_side_by_side_on_the_command_line(tmp_path):
    """A bare architecture, in the shape that other tools read."""
    arguments = (
        "bench --model fastvit_t8 --size 64 --engines torch-train-time,torch,onnx --batch 1,2 --threads 1 --runs 2"
    )
    run = CliRunner().invoke(app, [*arguments.split(), "--no-cold", "--stages", "--json", str(tmp_path / "bench.json")])
    assert run.exit_code == 0, run.output
    assert "| onnx float32 " in run.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report.keys() == {"machine", "rows"}
    assert all(
        row.keys() >= {"model", "engine", "precision", "batch", "threads", "network_ms", "p95_ms"}
        for row in report["rows"]
    )
    rows = [row for row in report["rows"] if "stage" not in row]
    assert [(row["engine"], row["form"], row["batch"]) for row in rows] == [
        (engine, form, batch)
        for batch in (1, 2)
        for engine, form in (("torch", "train-time"), ("torch", "reparameterized"), ("onnx", "reparameterized"))
    ]
    for row in rows:
        assert 0 < row["min_ms"] <= row["network_ms"] <= row["p95_ms"]
        assert row["distance_mm"] < 0.01
        assert row["crops_per_s"] == pytest.approx(1000 * row["batch"] / row["network_ms"])
    assert [row["ratio"] for row in rows if (row["engine"], row["form"]) == ("torch", "reparameterized")] == [1, 1]
    stages = {row["stage"]: row["network_ms"] for row in report["rows"] if "stage" in row}
    assert stages.keys() >= {"decode", "detector", "crop", "network", "find", "encode", "draw"}


@pytest.mark.skipif(sys.platform != "linux", reason="macOS's peak is of the process alone; Windows tells none")
def test_memory_is_of_the_engines_process_alone():
    """Linux hands the peak of who starts a process on to it: 125 MB of ONNX Runtime read as 360 beside torch."""
    held = bytearray(600 << 20)
    _, memory_mb = cold_start(bundled_model_path(), "onnx", 1)
    assert len(held) > 0
    assert 30 < memory_mb < 400


@pytest.mark.slow
def test_reduced_precision_and_cold_starts():
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    variants = ["torch", "onnx", "onnx-int8", "openvino", "openvino-int8"]
    (rows,) = bench_engines("fastvit_t8", variants, size=64, threads=1, runs=2)
    assert [row.precision for row in rows] == ["float32", "float32", "int8", "float32", "int8"]
    assert all(row.cold_start_ms > 10 and row.memory_mb > 10 for row in rows)


def test_what_cannot_be_measured_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"no engine 'tensorrt'.*onnx-int8"):
        bench_engines(None, ["tensorrt"])
    with pytest.raises(ConfigError, match="needs a bare architecture"):
        bench_engines(None, ["torch-train-time"])
    with pytest.raises(ConfigError, match="of 2 threads adds up"):
        bench_engines(None, threads=2, clock="cpu")
    for arguments, says in (
        (["--backbones", "--batch", "1,2"], "one batch size at a time"),
        (["--backbones", "--model", "handmesh_t8"], "no --model"),
        (["--backbones", "--stages"], "no --stages"),
        (["--names", "fastvit_t8"], "--names says which of --backbones"),
        (["--backbones", "--names", "fastvit_t8,fastvit_t9"], "no backbone 'fastvit_t9'"),
        (["--backbones", "--size", "48"], "multiples of 32"),
        (["--size", "96"], "of a bare architecture"),
        (["--backbones", "--cold"], "--cold is of one model's engines"),
        (["--out", "nowhere/x.json"], "there is no folder nowhere"),
    ):
        assert says in str(CliRunner().invoke(app, ["bench", *arguments]).exception)
    assert "wanted numbers of crops" in str(CliRunner().invoke(app, ["bench", "--batch", "1,none"]).exception)


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()

    def fail() -> None:
        with torch_threads(before + 1):
            raise RuntimeError(f"on {torch.get_num_threads()} threads")

    with pytest.raises(RuntimeError, match=f"on {before + 1} threads"):
        fail()
    assert torch.get_num_threads() == before
