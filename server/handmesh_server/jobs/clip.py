"""`python -m handmesh_server.jobs.clip FOLDER ARGUMENTS`: one clip, in a process of its own, as by `handmesh video`.

A decoder that crashes, or takes all memory, ends this process alone. It leaves processors to photos and is the first to
go when memory runs out. It ends when its standard input does, for then its service is gone.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from handmesh.errors import DataError, HandMeshError, ImageError, OtherRunError
from handmesh_server.jobs.runner import DONE, REFUSED
from handmesh_server.jobs.store import RESULTS

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> int:
    folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    _step_back(arguments["nice"], arguments["memory_bytes"])
    from handmesh_server import logs

    logs.configure(arguments["log_level"])
    request = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        result = _convert(folder, request, arguments)
    except HandMeshError as error:
        reason = "unreadable_clip" if isinstance(error, ImageError | DataError) else "failed"
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
            reason = "storage_full"
        detail = str(error).replace(f"{folder}{os.sep}", "")  # where it lies here is nobody's business
        _write(folder / "problem.json", {"reason": reason, "detail": detail})
        return REFUSED
    _write(folder / "result.json", result)
    return DONE


def _convert(folder: Path, request: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    import math

    from handmesh.files.video import ClipSource
    from handmesh.geometry.camera import Intrinsics
    from handmesh.motion.clip import VideoOptions, VideoResult, convert_clip
    from handmesh.motion.smoothing import Smoothing
    from handmesh.motion.track import Tracking
    from handmesh.predict import load_predictor
    from handmesh_server.jobs.limits import LimitedSource
    from handmesh_server.schemas import VideoQuery

    query = VideoQuery.model_validate(request["query"]).model_dump()  # of an earlier version, perhaps: with what is new

    def camera(width: int, height: int) -> Intrinsics:
        if query["focal"] is not None:
            return Intrinsics(query["focal"], query["focal"], (width - 1) / 2, (height - 1) / 2)
        if query["fov"] is not None:
            return Intrinsics.from_fov(math.radians(query["fov"]), width, height)
        return Intrinsics.default_for(width, height)

    def progress(done: int, of: int | None) -> None:
        _write(folder / "progress.json", {"frames_done": done, "frames": of})

    limits = {"max_frames": arguments["max_frames"], "max_pixels": arguments["max_pixels"]}
    predictor = load_predictor(arguments["model"], passes=arguments["passes"], threads=1)

    def convert(restart: bool) -> VideoResult:
        return convert_clip(
            LimitedSource(ClipSource(folder / request["clip"]), **limits),
            folder / RESULTS,
            predictor,
            handedness=query["hand"],
            intrinsics=camera,
            options=VideoOptions(
                tracking=Tracking(max_hands=query["max_hands"]),
                smoothing=None if query["smooth"] == 0 else Smoothing.of_strength(query["smooth"]),
                skeleton=query["skeleton"],
                bvh=query["bvh"],
            ),
            restart=restart,
            progress=progress,
        )

    try:
        result = convert(restart=arguments["last_attempt"])  # what lies there may be what ended the others
    except OtherRunError:  # it was begun by another version, or on a machine with another engine
        result = convert(restart=True)
    return {
        "frames": result.frames,
        "frames_with_hands": result.frames_with_hands,
        "hands": result.hands,
        "remarks": list(result.remarks),
        "files": [path.name for path in result.files],
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    from handmesh.system.atomic import write_atomically

    write_atomically(path, json.dumps(content).encode())


def _end_with_the_service() -> None:
    while os.read(0, 4096):  # not `sys.stdin`, whose lock a process that ends must have
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        import signal

        os.killpg(os.getpgrp(), signal.SIGKILL)  # an encoder that we started, too
    os._exit(1)


def _step_back(nice: int, memory_bytes: int) -> None:
    if hasattr(os, "nice"):
        os.nice(nice)
    with suppress(OSError):  # there is none but on Linux
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


if __name__ == "__main__":
    sys.exit(main())
