"""What is installed is what is in the tree: the wheel holds all of dspa/ and kernels/, no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree, with the build tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("dspa", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "out", "."]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("dspa/**/*.py")}
    expected |= {
        "dspa/" + path.relative_to(ROOT).as_posix() for path in ROOT.glob("kernels/**/*.py")
    }
    expected.add("dspa/py.typed")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected - names == set(), "not in the wheel"
    assert names - expected == set(), "in the wheel, not in the tree"


def test_the_wheel_names_the_command_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        entry = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
        licence = [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert "dspa = dspa.cli:main" in entry
    for extra in ("cuda", "slurm", "kubernetes", "topaz", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    assert licence
