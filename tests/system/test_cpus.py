"""The share of processors, read from control groups as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from handmesh.system import cpus
from handmesh.system.cpus import cgroup_cpus, default_threads, physical_cores, usable_cores, usable_cpus


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("of_process", "contents", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # version 2, in a container
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the machine's own root has no such file
        # A group inside others: the tightest counts, wherever it is.
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        # Version 1.
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            "4:cpuacct,cpu:/docker/x\n",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "25000\n", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n"},
            0.25,
        ),
        # The path of the process is the host's, but the container's own group is mounted as the root.
        ("0::/docker/x\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
    ],
)
def test_the_share_of_a_control_group(of_process, contents, expected, tmp_path):
    root = files(tmp_path / "cgroup", contents)
    root.mkdir(exist_ok=True)
    (tmp_path / "self").write_text(of_process)
    assert cgroup_cpus(root, tmp_path / "self") == expected


def test_other_systems_have_no_control_groups(tmp_path):
    assert cgroup_cpus(tmp_path / "none", tmp_path / "none either") is None


@pytest.mark.parametrize(("share", "expected"), [(None, 4), (8.0, 4), (2.9, 2), (0.5, 1)])
def test_the_least_of_affinity_and_share(share, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cpus, "cgroup_cpus", lambda: share)
    assert usable_cpus() == expected


def test_hardware_threads_of_one_core_count_once(tmp_path):
    """Four cores of two hardware threads each; Linux numbers the second ones of all cores after the first ones."""
    siblings = {f"cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)}
    root = files(tmp_path, siblings)
    assert physical_cores(range(8), root) == 4
    assert physical_cores({0, 4}, root) == 1
    assert physical_cores({0, 1, 6}, root) == 3
    assert physical_cores(range(8), tmp_path / "no such folder") == 8


@pytest.mark.parametrize(("share", "expected"), [(None, 2), (1.5, 1), (3.0, 2)])
def test_cores_are_limited_by_the_share_too(share, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cpus, "physical_cores", lambda allowed: len(allowed) // 2)
    monkeypatch.setattr(cpus, "cgroup_cpus", lambda: share)
    assert usable_cores() == expected


@pytest.mark.parametrize(("limit", "expected"), [("", 4), ("2", 2), ("16", 4), ("0", 4), ("4,2", 4)])
def test_the_usual_variable_limits_threads(limit, expected, monkeypatch):
    monkeypatch.setattr("handmesh.system.cpus.usable_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert default_threads() == expected
