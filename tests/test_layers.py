"""The shape of the program: imports point one way, and importing is cheap, silent and free of side effects."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "handmesh", ROOT / "server" / "handmesh_server")

# A module imports from its own layer and from those above it in this list. A sub-package counts as one module.
LAYERS = {
    "values": "errors folders processors memory hand image camera crop render render_pytorch3d mesh_io config anatomy "
    "mano_file model_file skinning animation",
    "model": "rotation mano mano_check builtin_hand hand_surface hand_rig remesh backbone backbone_training "
    "norm_statistics unfold grow backbone_weights model checkpoint weights",
    "learning and engines": "data synth losses metrics predictions evaluation_sets evaluate report train imagenet "
    "distributed held_out optimization run_record carry rehearsal onnx_graph graph_cache engine",
    "predict": "detect predict evaluate_model smoothing track clip hand_log video webcam bench export bench_engines",
    "programs": "handmesh handmesh_server cli __main__ demo doctor evaluate_run",
}
LEVEL = {name: level for level, names in enumerate(LAYERS.values()) for name in names.split()}
FILES = [file for package in PACKAGES for file in sorted(package.rglob("*.py"))]


def module_of(file: Path) -> str:
    """handmesh/data/formats/jsonl.py -> data; handmesh/__init__.py -> handmesh; everything of the server -> handmesh_server."""
    package = next(package for package in PACKAGES if file.is_relative_to(package))
    first = file.relative_to(package).parts[0].removesuffix(".py")
    return package.name if first == "__init__" or package.name != "handmesh" else first


def package_file(name: str) -> Path:
    module = ROOT / "handmesh" / f"{name}.py"
    return module if module.exists() else ROOT / "handmesh" / name / "__init__.py"


def imports_of(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports anywhere, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively: write the whole name"
            names = [f"{node.module}.{name}" for name in names]
        for package, _, rest in (name.partition(".") for name in names):
            if package in ("handmesh", "handmesh_server"):
                first = rest.split(".")[0]
                is_module = package == "handmesh" and (package_file(first).exists() or first in LEVEL)
                yield first if is_module else package


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    module = module_of(file)
    assert module in LEVEL, f"{module} is in no layer: decide what it may build on, and add it to LAYERS"
    for imported in imports_of(file):
        assert imported in LEVEL, f"{module} imports {imported}, which is in no layer: add it to LAYERS"
        assert LEVEL[imported] <= LEVEL[module], f"{module} must not import {imported}, which builds on it"


def test_no_imports_in_circles():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(module_of(file), set()).update(set(imports_of(file)) - {module_of(file), "handmesh"})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_a_package_is_found_at_all():
    assert {"hand", "handmesh"} <= {module_of(file) for file in FILES}


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
print(json.dumps({"printed": printed.getvalue(), "opened": opened, "torch": "torch" in sys.modules}))
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
    without_torch = [dotted(file) for file in FILES if LEVEL.get(module_of(file)) == 0]
    if (ROOT / "handmesh" / "predict.py").exists():
        without_torch.append("handmesh.predict")
    assert probe(["handmesh", *without_torch])["torch"] is False


def test_importing_prints_nothing_and_reads_no_file_of_ours():
    report = probe([dotted(file) for file in FILES])
    assert report["printed"] == ""
    assert report["opened"] == []
