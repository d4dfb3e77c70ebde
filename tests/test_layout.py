"""The rooms keep their walls: one-way imports, fenced third parties, short files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# cli, app -> project -> stages -> {dataflow | io} -> data -> ops -> {geometry | kernels} -> device
RANK = {
    "device": 0,
    "geometry": 1,
    "kernels": 1,
    "ops": 2,
    "data": 3,
    "dataflow": 4,
    "io": 4,
    "plots": 4,
    "stages": 5,
    "project": 6,
    "app": 7,
    "cli": 8,
}
# Where a third party may be imported; a file name fences tighter than its room.
FENCES = {
    "dask": {"dataflow", "stages", "project", "app", "cli"},
    "distributed": {"dataflow", "stages", "project", "app", "cli"},
    "xarray": {"data", "dataflow", "io", "stages", "project", "app", "cli"},
    "zarr": {"data", "dataflow", "io", "stages", "project", "app", "cli"},
    "bokeh": {"app"},
    "cupy": {"device", "ops", "kernels"},
    "cupyx": {"device", "ops", "kernels"},
    "matplotlib": {"dspa/io/picture.py", "dspa/io/coloured.py", "dspa/plots.py"},
    "PIL": {"dspa/io/picture.py", "dspa/io/png.py"},
    "click": {"cli"},
    "pickle": {"dataflow"},
}
LAZY_ONLY = {"cupy", "cupyx"}
SOURCES = sorted([*ROOT.glob("dspa/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "kernels":
        return "kernels"
    name = parts[1].removesuffix(".py")
    return "cli" if name.startswith("cli_") else name


def imports(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, at module level) of every import, wherever it stands."""
    top = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import, line {node.lineno}"
            assert node.module is not None
            yield node.module, node.lineno, id(node) in top
            if node.module == "dspa":  # `from dspa import ops` names a room
                for alias in node.names:
                    yield f"dspa.{alias.name}", node.lineno, id(node) in top


def breaches(path: Path) -> list[str]:
    """Return one line per import of this file that the rules forbid."""
    room, name = room_of(path), path.relative_to(ROOT).as_posix()
    found = []
    for module, line, at_top in imports(ast.parse(path.read_text(), str(path))):
        parts = module.split(".")
        if parts[0] == "dspa" and len(parts) > 1:
            other = parts[1]
            if other in RANK and other != room and RANK.get(room, 99) <= RANK[other]:
                found.append(f"{name}:{line}: {room} must not import {module}")
        elif parts[0] == "kernels":
            found.append(f"{name}:{line}: import dspa.kernels, not kernels")
        elif parts[0] in FENCES and not FENCES[parts[0]] & {room, name}:
            found.append(f"{name}:{line}: {parts[0]} is fenced to {sorted(FENCES[parts[0]])}")
        elif parts[0] in LAZY_ONLY and at_top:
            found.append(f"{name}:{line}: import {parts[0]} inside the function that needs it")
    return found


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body or function.end_lineno is None:
        return 0
    return function.end_lineno - body[0].lineno + 1


def test_rooms_import_one_way_and_third_parties_stay_fenced() -> None:
    found = [line for path in SOURCES if path.name != "__main__.py" for line in breaches(path)]
    assert not found, "\n".join(found)


def test_the_walk_sees_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that cannot fail keeps nothing: plant breaches and find them."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "dspa/ops").mkdir(parents=True)
    planted = tmp_path / "dspa/ops/bad.py"
    planted.write_text(
        "import cupy\nimport numpy\n"
        "def f():\n    from dspa.io.mrc import read\n    import dask.array\n"
    )
    messages = breaches(planted)
    assert len(messages) == 3
    assert "bad.py:4: ops must not import dspa.io.mrc" in messages[1]


def test_files_and_functions_stay_short() -> None:
    found = []
    for path in [*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        text = path.read_text()
        name = path.relative_to(ROOT)
        if text.count("\n") > 500:
            found.append(f"{name}: {text.count(chr(10))} lines (at most 500)")
        if path not in SOURCES:
            continue
        found += [
            f"{name}:{node.lineno}: {node.name} has {body_lines(node)} lines (at most 60)"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > 60
        ]
    assert not found, "\n".join(found)


def forbidden_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield calls that would execute what a file says: eval, exec, unpickling."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "yaml.load", "yaml.unsafe_load"}:
            yield node.lineno, called
        for keyword in node.keywords:
            constant = keyword.value
            if keyword.arg == "allow_pickle" and not (
                isinstance(constant, ast.Constant) and constant.value is False
            ):
                yield node.lineno, "allow_pickle"


def test_nothing_read_from_a_file_is_executed() -> None:
    """No eval, no unpickling of files; only the inline runner pickles, and its own objects."""
    found = []
    for path in SOURCES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        found += [f"{name}:{line}: {what}" for line, what in forbidden_calls(ast.parse(text))]
        if "pickle.load(" in text or "read_pickle(" in text:
            found.append(f"{name}: pickle.load")
    assert not found, "\n".join(found)


def test_import_dspa_loads_nothing_heavy() -> None:
    code = (
        "import sys, dspa; "
        "heavy = 'dask distributed cupy bokeh xarray zarr matplotlib numba pandas scipy'; "
        "loaded = [m for m in heavy.split() if m in sys.modules]; assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rooms_below_dataflow_work_without_dask_and_cupy() -> None:
    """Optional means it was tried without: import device, geometry, ops and kernels bare."""
    rooms = [path for path in SOURCES if RANK.get(room_of(path), 99) <= RANK["ops"]]
    names = []
    for path in rooms:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        parts = ["dspa", *parts] if parts[0] == "kernels" else parts
        names.append(".".join(part for part in parts if part != "__init__"))
    code = (
        "import importlib, sys\n"
        "for name in ('dask', 'distributed', 'cupy', 'xarray', 'zarr', 'bokeh', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
