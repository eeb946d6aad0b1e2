"""How many threads pay off: the CPUs that this process may really use, not those that the machine has.

A container is often given less than it sees. Threads beyond the share wait for each other, and a network on too many
threads is several times slower than on one.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from numbers import Integral
from pathlib import Path
from typing import Any, Final

from handmesh.errors import ConfigError

MAX_THREADS: Final = (
    1024  # that may be asked for, of processes too: more is a slip, and its start takes a machine with it
)

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cpus() -> int:
    """The least of: the CPUs of this machine, those of the affinity mask, the share of the control group.

    At least 1; a share of 1.5 CPUs counts as 1.
    """
    return _within_share(len(_allowed()))


def usable_cores() -> int:
    """Like `usable_cpus`, but of a core's hardware threads only one counts: they share its arithmetic units.

    So many threads of one network pay off (ONNX Runtime's and PyTorch's own default is the number of cores). Where
    the system does not say which CPUs are one core, each counts; elsewhere than on Linux nobody is asked.
    """
    return _within_share(physical_cores(_allowed()))


def default_threads() -> int:
    """One for each core that this process may use, but no more than $OMP_NUM_THREADS."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    usable = usable_cores()
    return min(usable, int(limit)) if limit.isdecimal() and int(limit) > 0 else usable


def checked_threads(threads: int | None) -> int:
    """So many, or of None `default_threads`. Raises ConfigError for what is no number of threads."""
    asked: Any = threads
    if asked is None:
        return default_threads()
    if not isinstance(asked, Integral) or not 1 <= int(asked) <= MAX_THREADS:
        raise ConfigError(f"threads is {asked!r}, wanted a whole number from 1 to {MAX_THREADS}, or None.")
    return int(asked)


def physical_cores(cpus: Collection[int], root: Path = TOPOLOGY) -> int:
    """How many cores the CPUs are of (Linux kernel documentation: admin-guide/cputopology.rst)."""
    return len({_siblings(cpu, root) for cpu in cpus})


def _siblings(cpu: int, root: Path) -> str:
    words = _words(root / f"cpu{cpu}/topology/thread_siblings_list")
    return words[0] if words else str(cpu)


def _allowed() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _within_share(count: int) -> int:
    share = cgroup_cpus()
    return count if share is None else max(1, min(count, int(share)))


def cgroup_cpus(root: Path = CGROUPS, of_process: Path = CGROUP_OF_PROCESS) -> float | None:
    """The share of CPUs that the control group allows, None without a limit.

    Version 2 has ``cpu.max`` ("quota period" or "max period"), version 1 ``cpu.cfs_quota_us`` (-1: no limit) and
    ``cpu.cfs_period_us`` (kernel documentation: admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst). Every group above
    the process's own limits it too. Inside a container its own group is usually mounted as the root.
    """
    groups = _groups(of_process)
    shares = [_version_2_share(folder) for folder in _with_parents(root, groups.get("", "/"))]
    for mount in ("cpu", "cpu,cpuacct"):
        shares += [_version_1_share(folder) for folder in _with_parents(root / mount, groups.get("cpu", "/"))]
    return min((share for share in shares if share is not None), default=None)


def _groups(of_process: Path) -> dict[str, str]:
    """Controller -> path of the process's group. Version 2's line names no controller: ``0::/path``."""
    try:
        lines = of_process.read_text().splitlines()
    except OSError:  # not Linux
        return {}
    found = {}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _with_parents(root: Path, group: str) -> list[Path]:
    folder = root / group.lstrip("/")
    folders = [folder, *folder.parents]
    return folders[: folders.index(root) + 1] if root in folders else [root]


def _version_2_share(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    return _share(words[0], words[1]) if len(words) == 2 else None


def _version_1_share(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _share(quota[0], period[0]) if len(quota) == len(period) == 1 else None


def _share(quota: str, period: str) -> float | None:
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:  # "max"
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
