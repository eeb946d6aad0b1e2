"""The shape of the program: imports point one way, and importing is cheap, silent and free of side effects."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "handmesh", ROOT / "server" / "handmesh_server")

# What each folder, or module beside the folders, may import. Read downwards: nothing imports what stands below it.
MAY_IMPORT = {
    "errors": "",
    "system": "errors",
    "geometry": "errors",
    "hand": "errors system geometry",
    "config": "errors system hand",
    "metrics": "errors hand",
    "draw": "errors system geometry hand",
    "files": "errors system geometry hand draw",
    "model": "errors config system geometry hand",
    "synth": "errors config system geometry hand",
    "runtime": "errors config system geometry hand metrics files model synth",
    "detect": "errors system geometry hand files runtime",
    "predict": "errors system geometry hand draw files runtime detect",
    "data": "errors config system geometry hand metrics draw files synth",
    "learn": "errors config system geometry hand metrics draw files model synth runtime data",
    "motion": "errors system geometry hand draw files runtime detect predict",
    "label": "errors geometry hand draw files predict",
    "evaluate": "errors system geometry hand metrics draw files model runtime predict data",
    "bench": "errors config system geometry hand files model synth runtime predict",
    "builtin_hand": "errors system geometry hand draw files",
    "doctor": "errors system hand model runtime detect",
    "handmesh_server": "errors system geometry hand draw files model runtime detect predict motion",
    "client": "errors system files handmesh_server",
    "cli": "errors config system geometry hand metrics draw files model synth runtime detect predict data learn motion "
    "label evaluate bench doctor handmesh_server",
}
# handmesh/__init__.py: names, loaded at first use
THE_DOOR = "handmesh errors system geometry hand config files predict learn motion"
FILES = [file for package in PACKAGES for file in sorted(package.rglob("*.py"))]


def room_of(file: Path) -> str:
    """handmesh/data/sample.py -> data; handmesh/__init__.py -> handmesh; all of the server -> handmesh_server."""
    package = next(package for package in PACKAGES if file.is_relative_to(package))
    first = file.relative_to(package).parts[0].removesuffix(".py")
    return package.name if first in ("__init__", "__main__") or package.name != "handmesh" else first


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a file imports anywhere, inside functions and for type checkers too, and the lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively: write the whole name"
            names = [f"{node.module}.{name}" for name in names]
        for package, _, rest in (name.partition(".") for name in names):
            if package in ("handmesh", "handmesh_server"):
                first = rest.split(".")[0]
                yield first if package == "handmesh" and first in MAY_IMPORT else package, node.lineno


def test_imports_point_one_way():
    wrong = []
    for file in FILES:
        room = room_of(file)
        may = {*MAY_IMPORT.get(room, "").split(), room, "handmesh"}
        if room == "handmesh":
            may |= {*THE_DOOR.split(), "cli"}
        elif room not in MAY_IMPORT:
            wrong.append(f"{file.relative_to(ROOT)}: no rule for {room}: decide what it may build on")
        wrong += [
            f"{file.relative_to(ROOT)}:{line}: {room} must not import {imported}"
            for imported, line in imports_of(file)
            if imported not in may
        ]
    assert not wrong, "\n".join(wrong)


def test_the_rules_point_downwards():
    """A rule names rooms above its own line alone, so no circle can be allowed by mistake."""
    above: set[str] = set()
    for room, may in MAY_IMPORT.items():
        assert set(may.split()) <= above, f"{room} may import what stands below it"
        above.add(room)


def test_no_imports_in_circles_within_a_room():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        imported = {
            f"{node.module}.{alias.name}"
            if (ROOT / f"{node.module}.{alias.name}".replace(".", "/")).with_suffix(".py").exists()
            else node.module
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        # A room's own __init__ offers names of its modules, which import each other through it.
        graph[dotted(file)] = {name for name in imported if name != dotted(file) and not name.count(".") < 2}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_each_runtime_has_one_door():
    """Imported past it, ONNX Runtime and OpenVINO report to their makers."""
    doors = {"onnxruntime": "runtime/onnx.py", "openvino": "runtime/openvino.py"}
    importing = re.compile(rf"^ *(?:import|from) ({'|'.join(doors)})\b")
    past = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in FILES
        for line in file.read_text(encoding="utf-8").splitlines()
        if (found := importing.match(line)) and not str(file).endswith(doors.get(found[1], "nowhere"))
    ]
    assert not past


def test_compiled_functions_have_one_door():
    """Compiled past it, a function has no place for its machine code where there is no home."""
    compiling = [file for file in FILES if re.search(r"\b(?:njit|jit|vectorize)\(", file.read_text(encoding="utf-8"))]
    assert [file.relative_to(ROOT).as_posix() for file in compiling] == ["handmesh/system/kernels.py"]


def test_few_modules_lie_beside_the_folders():
    assert len(list((ROOT / "handmesh").glob("*.py"))) <= 8


# In a fresh interpreter: import each module named on the command line; report what it printed, opened and dragged in.
PROBE = """
import contextlib, importlib, io, json, os, sys
package_roots, names = json.loads(sys.argv[1])
opened = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "w" not in str(arguments[1]):
        path = os.path.abspath(arguments[0])
        code = path.endswith(".py") or "__pycache__" in path  # where python and numba keep what they compiled
        if path.startswith(tuple(package_roots)) and not code:
            opened.append(path)
sys.addaudithook(watch)
printed = io.StringIO()
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    for name in names:
        importlib.import_module(name)
loaded = sorted({"torch", "numba"} & set(sys.modules))
print(json.dumps({"printed": printed.getvalue(), "opened": opened, "loaded": loaded}))
"""


def probe(names: list[str]) -> dict:
    roots = [str(package) + "/" for package in PACKAGES]
    command = [sys.executable, "-W", "error::ImportWarning", "-c", PROBE, json.dumps([roots, names])]
    paths = [*(str(package.parent) for package in PACKAGES), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", result.stderr
    return json.loads(result.stdout)


def dotted(file: Path) -> str:
    package = next(package for package in PACKAGES if file.is_relative_to(package))
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_describing_and_predicting_hands_does_not_import_torch():
    """Half of a cold start would be torch, which an ONNX engine never needs."""
    rooms = {
        "errors",
        "config",
        "system",
        "hand",
        "metrics",
        "draw",
        "files",
        "detect",
        "predict",
        "motion",
        "doctor",
        "synth",
        "data",
        "handmesh_server",
        "bench",
    }
    with_torch = {"handmesh.hand.layer", "handmesh.hand.mano_check", "handmesh.draw.pytorch3d"}
    with_torch |= {f"handmesh.data.{name}" for name in ("stream", "loader", "augment_gpu", "live")}
    names = [dotted(file) for file in FILES if room_of(file) in rooms]
    assert probe(["handmesh", *(name for name in names if name not in with_torch)])["loaded"] == ["numba"]


def test_predicting_without_drawing_imports_no_compiler():
    """numba, which draws, would be a third of a cold start to a JSON file."""
    assert probe(["handmesh.cli.predict", "handmesh.predict", "handmesh.runtime.onnx"])["loaded"] == []


def test_importing_prints_nothing_and_reads_no_file_of_ours():
    report = probe([dotted(file) for file in FILES if file.name != "__main__.py"])
    assert report["printed"] == ""
    assert report["opened"] == []
